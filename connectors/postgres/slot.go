package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"

	"github.com/shelfwire/shelfwire/schemas/change"
)

// History identifies the past that positions of this source belong to: cluster, timeline and slot. A position kept
// under another history means nothing here. The timeline is the one being written now, as IDENTIFY_SYSTEM says it;
// the control file would still name the old one for a while after a promotion.
func (s *Source) History(ctx context.Context) (change.History, error) {
	conn, err := s.replication(ctx)
	if err != nil {
		return change.History{}, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	id, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return change.History{}, wrap(ctx, "identify the source", err)
	}
	return change.History{SystemID: id.SystemID, Timeline: id.Timeline, Slot: s.cfg.Slot}, nil
}

// publication is what the catalog says of a publication.
type publication struct {
	viaRoot, allTables, all bool // all: insert, update, delete and truncate are published
	tables                  []string
}

func (s *Source) publication(ctx context.Context) (*publication, error) {
	var p publication
	err := s.pool.QueryRow(ctx, `
		SELECT p.pubviaroot, p.puballtables, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
			ARRAY(SELECT t.schemaname || '.' || t.tablename FROM pg_publication_tables t WHERE t.pubname = p.pubname ORDER BY 1)
		FROM pg_publication p WHERE p.pubname = $1`, s.cfg.Publication).Scan(&p.viaRoot, &p.allTables, &p.all, &p.tables)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, wrap(ctx, "read the publication", err)
	}
	return &p, nil
}

// EnsurePublication makes sure that the publication exists, publishes every operation under the partition root's
// name, and holds these tables ("schema.name"); it creates or widens it where the role may. Where it may not, the
// error has the SQL for somebody who may. Tables that stand in the publication beyond these are left alone.
//
// It must have succeeded before [Source.EnsureSlot]: the slot looks the publication up in the catalog as it was when
// the WAL was written, so a slot older than its publication can never be read. What was written to a table before it
// was published is not streamed; such a table needs a snapshot.
func (s *Source) EnsurePublication(ctx context.Context, tables []string) error {
	p, err := s.publication(ctx)
	if err != nil {
		return err
	}
	stmts, err := s.publicationSQL(p, tables)
	if err != nil {
		return err
	}
	if err := s.refuseNameless(ctx, p.missing(tables)); err != nil {
		return err
	}
	for _, sql := range stmts {
		if _, err := s.pool.Exec(ctx, sql); err != nil {
			err = wrap(ctx, fmt.Sprintf("set up publication %q", s.cfg.Publication), err)
			if ctx.Err() == nil {
				err = fmt.Errorf("%w; let a superuser or the owner run: %s;", err, strings.Join(stmts, "; "))
			}
			return err
		}
		s.cfg.Logger.InfoContext(ctx, "publication changed", "sql", sql)
	}
	if len(stmts) == 0 {
		return nil
	}
	// Look again: a partition, a view or an unlogged table is accepted or refused in ways that depend on the version.
	if p, err = s.publication(ctx); err != nil {
		return err
	}
	if left := p.missing(tables); len(left) > 0 {
		return fmt.Errorf("publication %q does not publish %s: is it a partition (route its root), or unlogged?", s.cfg.Publication, strings.Join(left, ", "))
	}
	return nil
}

// refuseNameless refuses tables, and partitions of them, whose rows have no replica identity: once such a table is
// published, Postgres refuses every update and delete of it, and the application that writes it would break.
func (s *Source) refuseNameless(ctx context.Context, tables []string) error {
	names, err := s.nameless(ctx, tables)
	if err != nil || len(names) == 0 {
		return err
	}
	return tableError(fmt.Sprintf("publication %q: without a replica identity, Postgres would refuse every update and delete of %s; give them a primary key, or run: %s",
		s.cfg.Publication, strings.Join(names, ", "), identitySQL(names)))
}

// identitySQL gives tables an identity that needs no key.
func identitySQL(names []string) string {
	var stmts []string
	for _, name := range names {
		q, _ := quoteTable(name) // comes from the catalog
		stmts = append(stmts, "ALTER TABLE "+q+" REPLICA IDENTITY FULL;")
	}
	return strings.Join(stmts, " ")
}

// nameless lists those of tables, and of their partitions, whose rows have no replica identity.
func (s *Source) nameless(ctx context.Context, tables []string) ([]string, error) {
	if len(tables) == 0 {
		return nil, nil
	}
	rows, err := s.pool.Query(ctx, `
		WITH root AS (
			SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname || '.' || c.relname = ANY ($1)
		), part AS (SELECT oid FROM root UNION SELECT t.relid FROM root, pg_partition_tree(root.oid) t), `+keySQL+`
		SELECT n.nspname || '.' || c.relname FROM part JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind = 'r' AND c.relreplident <> 'f' AND NOT EXISTS (SELECT FROM key WHERE indrelid = c.oid
			AND CASE c.relreplident WHEN 'd' THEN indisprimary WHEN 'i' THEN indisreplident END) ORDER BY 1`, tables)
	var names []string
	if err == nil {
		names, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	return names, wrap(ctx, "look at replica identities", err)
}

func (p *publication) missing(tables []string) []string {
	var left []string
	for _, t := range tables {
		if p == nil || !slices.Contains(p.tables, t) {
			left = append(left, t)
		}
	}
	return left
}

const publicationOptions = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"

// publicationSQL returns the statements that turn p (nil: there is none) into a publication of these tables.
func (s *Source) publicationSQL(p *publication, tables []string) ([]string, error) {
	name := quoteIdent(s.cfg.Publication)
	var missing []string
	for _, t := range p.missing(tables) {
		q, err := quoteTable(t)
		if err != nil {
			return nil, err
		}
		missing = append(missing, q)
	}
	list := strings.Join(missing, ", ")
	switch {
	case p == nil && len(missing) == 0:
		return nil, errors.New("publication: no table is routed")
	case p == nil:
		return []string{fmt.Sprintf("CREATE PUBLICATION %s FOR TABLE %s WITH (%s)", name, list, publicationOptions)}, nil
	}
	var stmts []string
	if !p.viaRoot || !p.all {
		stmts = append(stmts, fmt.Sprintf("ALTER PUBLICATION %s SET (%s)", name, publicationOptions))
	}
	if len(missing) > 0 {
		if p.allTables {
			return nil, fmt.Errorf("publication %q is FOR ALL TABLES and yet does not publish %s: does it exist, and is it logged and no partition?", s.cfg.Publication, list)
		}
		stmts = append(stmts, fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE %s", name, list))
	}
	return stmts, nil
}

// SlotInfo is the state of the replication slot.
type SlotInfo struct {
	// Created says that this call has made it: the stream begins here, and everything older needs a snapshot.
	Created bool
	// ConfirmedFlush is how far the slot has been acknowledged; nothing before it can be had again.
	ConfirmedFlush change.LSN
	// Restart is where the server keeps WAL from.
	Restart change.LSN
	// WALStatus is reserved, extended or unreserved; the latter means that the server may remove needed WAL at its
	// next checkpoint.
	WALStatus string
	// SafeWAL is how many bytes may still be written before the slot is in danger; -1 where the server has no limit.
	SafeWAL int64
	// ActivePID is the walsender that reads from it now; 0 for none.
	ActivePID int32
	// Failover says that standbys which synchronise slots (17 and newer) have it as well.
	Failover bool
}

// EnsureSlot creates the slot unless it exists, and says where it stands. Trouble is a [*SlotError]. The publication
// must exist by then.
//
// From version 17 on it creates a failover slot: a standby that has sync_replication_slots set keeps a copy, and once
// promoted goes on with it. Where no standby does, that costs nothing. Where the server's synchronized_standby_slots
// names some, the stream waits for these, which is their point: Kafka then never has what a failover loses. A slot that
// somebody has made otherwise is taken as it is.
func (s *Source) EnsureSlot(ctx context.Context) (SlotInfo, error) {
	info, err := s.slotInfo(ctx)
	var trouble *SlotError
	if !errors.As(err, &trouble) || trouble.Kind != SlotMissing {
		return info, err
	}
	if err := s.createSlot(ctx, true); err != nil {
		return SlotInfo{}, err
	}
	s.cfg.Logger.InfoContext(ctx, "replication slot created", "slot", s.cfg.Slot)
	info, err = s.slotInfo(ctx)
	info.Created = true
	return info, err
}

func (s *Source) slotInfo(ctx context.Context) (SlotInfo, error) {
	var (
		info                                        SlotInfo
		plugin, kind, database, here                string
		confirmed, restart, walStatus, safe, reason *string
		pid                                         *int32
		there, standby                              bool
	)
	err := s.pool.QueryRow(ctx, `
		SELECT slot_name IS NOT NULL, pg_is_in_recovery(), coalesce(plugin, ''), coalesce(slot_type, ''), coalesce(database, ''), current_database(),
			confirmed_flush_lsn::text, restart_lsn::text, wal_status, safe_wal_size::text, active_pid,
			coalesce(to_jsonb(s) ->> 'invalidation_reason', CASE WHEN (to_jsonb(s) ->> 'conflicting')::boolean THEN 'conflict with recovery' END),
			coalesce((to_jsonb(s) ->> 'failover')::boolean, false)
		FROM (VALUES (1)) always LEFT JOIN pg_replication_slots s ON slot_name = $1`, s.cfg.Slot).
		Scan(&there, &standby, &plugin, &kind, &database, &here, &confirmed, &restart, &walStatus, &safe, &pid, &reason, &info.Failover)
	switch {
	case err != nil:
		return SlotInfo{}, wrap(ctx, "read the state of the slot", err)
	case standby:
		return SlotInfo{}, standbyError(s.cfg.Slot)
	case !there:
		return SlotInfo{}, &SlotError{
			Slot: s.cfg.Slot, Kind: SlotMissing, Detail: "there is none of this name", Mend: mendMissing,
		}
	case kind != "logical" || plugin != "pgoutput" || database != here:
		return SlotInfo{}, &SlotError{
			Slot: s.cfg.Slot, Kind: SlotForeign,
			Detail: fmt.Sprintf("it is a %s slot of plugin %q in database %q, not a logical one of pgoutput in %q", kind, plugin, database, here),
			Mend:   "configure another slot name",
		}
	case confirmed == nil && pid != nil:
		return SlotInfo{}, &SlotError{
			Slot: s.cfg.Slot, Kind: SlotActive, Detail: "another process is creating it", PIDs: []int32{*pid},
			Mend: "wait: its creation ends with the transactions that run now",
		}
	case restart == nil || confirmed == nil || reason != nil || walStatus != nil && *walStatus == "lost":
		detail := "the server has removed WAL that it needs"
		if reason != nil {
			detail = "the server has invalidated it (" + *reason + ")"
		}
		return SlotInfo{Failover: info.Failover}, &SlotError{Slot: s.cfg.Slot, Kind: SlotLost, Detail: detail, Mend: mendLost(s.cfg.Slot)}
	}
	if info.ConfirmedFlush, err = change.ParseLSN(*confirmed); err != nil {
		return SlotInfo{}, err
	}
	if info.Restart, err = change.ParseLSN(*restart); err != nil {
		return SlotInfo{}, err
	}
	info.SafeWAL = -1
	if safe != nil {
		if info.SafeWAL, err = strconv.ParseInt(*safe, 10, 64); err != nil {
			return SlotInfo{}, fmt.Errorf("safe_wal_size of the slot: %w", err)
		}
	}
	if walStatus != nil {
		info.WALStatus = *walStatus
	}
	if pid != nil {
		info.ActivePID = *pid
	}
	return info, nil
}

// firstFailover is the first version that can make the slot known to standbys.
const firstFailover = 170000

// slotTries is how often a slot is made anew because published tables were changed meanwhile.
const slotTries = 5

// createSlot makes the slot at a time at which no published table is changed.
//
// Invariant: nobody reads from a slot that was made beside such a change. PostgreSQL (15.18, seen about once in 150
// times) may then give a slot that does not know of it, and goes on sending the rows without their new column.
func (s *Source) createSlot(ctx context.Context, failover bool) error {
	for try := 1; ; try++ {
		var from string
		if err := s.pool.QueryRow(ctx, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text").Scan(&from); err != nil {
			return wrap(ctx, "create the slot", err)
		}
		if err := s.makeSlot(ctx, failover); err != nil {
			return err
		}
		changed, err := s.tablesChanged(ctx, from)
		if err == nil && !changed {
			return nil
		}
		if err := errors.Join(err, s.DropSlot(ctx)); err != nil {
			return err
		}
		if try == slotTries {
			return fmt.Errorf("create slot %q: published tables were changed each of %d times meanwhile", s.cfg.Slot, try)
		}
		s.cfg.Logger.InfoContext(ctx, "published tables were changed while the slot was made: it is made again", "slot", s.cfg.Slot)
	}
}

// tablesChanged reports whether a transaction of this id or a later one has changed a published table, or which tables
// are published.
func (s *Source) tablesChanged(ctx context.Context, xid string) (changed bool, err error) {
	err = s.pool.QueryRow(ctx, `
		WITH root AS (
			SELECT to_regclass(quote_ident(schemaname) || '.' || quote_ident(tablename)) AS oid FROM pg_publication_tables WHERE pubname = $1
		), part AS (
			SELECT oid FROM root UNION SELECT t.relid FROM root, pg_partition_tree(root.oid) t
		), row AS (
			SELECT xmin FROM pg_class WHERE oid IN (SELECT oid FROM part)
			UNION ALL SELECT xmin FROM pg_attribute WHERE attrelid IN (SELECT oid FROM part)
			UNION ALL SELECT xmin FROM pg_index WHERE indrelid IN (SELECT oid FROM part)
			UNION ALL SELECT xmin FROM pg_publication_rel WHERE prrelid IN (SELECT oid FROM part)
		) SELECT EXISTS (SELECT FROM row WHERE age(xmin) <= age($2::text::xid8::xid))`, s.cfg.Publication, xid).Scan(&changed)
	return changed, wrap(ctx, "look for changes of published tables", err)
}

// makeSlot waits, as the server does, for every transaction that runs at its beginning.
func (s *Source) makeSlot(ctx context.Context, failover bool) error {
	tx, err := s.pool.Begin(ctx)
	if err != nil {
		return wrap(ctx, "create the slot", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // nothing to undo after a commit
	// The limit is the server's, so that it gives the half-made slot up by itself; ours only ends the connection.
	if _, err := tx.Exec(ctx, fmt.Sprintf("SET LOCAL statement_timeout = %d", s.cfg.SlotTimeout.Milliseconds())); err != nil {
		return wrap(ctx, "create the slot", err)
	}
	more := ""
	if failover && s.version >= firstFailover {
		more = ", failover => true"
	}
	_, err = tx.Exec(ctx, "SELECT pg_create_logical_replication_slot($1, 'pgoutput'"+more+")", s.cfg.Slot)
	if err == nil {
		return wrap(ctx, "create the slot", tx.Commit(ctx))
	}
	switch sqlstate(err) {
	case "57014":
		if ctx.Err() == nil {
			return s.blocked(ctx, err)
		}
	case "42710": // another process was quicker; the caller reads what it made
		return nil
	case "42501":
		return wrap(ctx, fmt.Sprintf("create slot %q: the role may not replicate: let a superuser run ALTER ROLE ... REPLICATION", s.cfg.Slot), err)
	case "53400":
		return wrap(ctx, fmt.Sprintf("create slot %q: all slots of the server are taken: raise max_replication_slots or drop one that is not used", s.cfg.Slot), err)
	case "55000":
		return wrap(ctx, fmt.Sprintf("create slot %q: the server must run with wal_level = logical (and be restarted after that)", s.cfg.Slot), err)
	}
	return wrap(ctx, "create the slot", err)
}

// blocked says which transactions the creation of the slot has waited for.
func (s *Source) blocked(ctx context.Context, cause error) error {
	e := &SlotError{
		Slot: s.cfg.Slot, Kind: SlotBlocked, Err: cause,
		Mend: "wait for these transactions to end, or end them with pg_terminate_backend (a prepared one with ROLLBACK PREPARED)",
	}
	rows, err := s.pool.Query(ctx, `
		SELECT pid, 'pid ' || pid || ' (' || coalesce(usename, '?') || ', ' || coalesce(state, '?') || ', in a transaction since ' ||
			to_char(xact_start, 'YYYY-MM-DD HH24:MI:SS') || ' UTC)'
		FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
		UNION ALL SELECT 0, 'prepared transaction ' || quote_literal(gid) FROM pg_prepared_xacts
		ORDER BY 1 LIMIT 20`)
	if err != nil {
		return errors.Join(cause, wrap(ctx, "find what blocks the slot", err))
	}
	var list []string
	var pid int32
	var what string
	if _, err := pgx.ForEachRow(rows, []any{&pid, &what}, func() error {
		if pid != 0 {
			e.PIDs = append(e.PIDs, pid)
		}
		list = append(list, what)
		return nil
	}); err != nil {
		return errors.Join(cause, wrap(ctx, "find what blocks the slot", err))
	}
	e.Detail = fmt.Sprintf("its creation waited %s for transactions that were running: %s", s.cfg.SlotTimeout.Round(time.Millisecond), strings.Join(list, ", "))
	return e
}

// CheckSlot returns a [*SlotError] when the slot cannot be read, and nil when it can, or is being read.
func (s *Source) CheckSlot(ctx context.Context) error {
	_, err := s.slotInfo(ctx)
	return err
}

// RenewSlot drops the slot, if there is one, and creates it anew: it then stands at the present end of WAL, and what
// it held is given up. The publication must exist by then. A slot that somebody reads is left alone, which is a
// [*SlotError] of kind SlotActive; so is one of a standby, and one of others. What is made is a failover slot, as by
// [Source.EnsureSlot], unless the one that is dropped was none.
func (s *Source) RenewSlot(ctx context.Context) error {
	info, err := s.slotInfo(ctx)
	trouble, ok := errors.AsType[*SlotError](err)
	if err != nil && (!ok || trouble.Gone() == "") {
		return err
	}
	failover := info.Failover || ok && trouble.Kind == SlotMissing
	if err := s.DropSlot(ctx); err != nil {
		return err
	}
	if err := s.createSlot(ctx, failover); err != nil {
		return err
	}
	s.cfg.Logger.InfoContext(ctx, "replication slot created", "slot", s.cfg.Slot)
	return nil
}

// WALEnd is how far the WAL of the primary reaches on its disk.
func (s *Source) WALEnd(ctx context.Context) (change.LSN, error) {
	var text string
	if err := s.pool.QueryRow(ctx, "SELECT pg_current_wal_flush_lsn()::text").Scan(&text); err != nil {
		return 0, wrap(ctx, "read the end of WAL", err)
	}
	return change.ParseLSN(text)
}

// SwitchPoint is where the present history of the source left a timeline for a newer one: what was written on that
// timeline before it is part of this history, what was written after it is not. It is false when this history never
// was on the timeline, or still is.
func (s *Source) SwitchPoint(ctx context.Context, timeline int32) (change.LSN, bool, error) {
	conn, err := s.replication(ctx)
	if err != nil {
		return 0, false, err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	id, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return 0, false, wrap(ctx, "identify the source", err)
	}
	if timeline >= id.Timeline {
		return 0, false, nil
	}
	h, err := pglogrepl.TimelineHistory(ctx, conn, id.Timeline)
	if err != nil {
		return 0, false, wrap(ctx, fmt.Sprintf("read the history of timeline %d", id.Timeline), err)
	}
	return switchPoint(string(h.Content), timeline)
}

// switchPoint reads a history file: a line for each former timeline, with its number, the position where it was left,
// and why.
func switchPoint(content string, timeline int32) (change.LSN, bool, error) {
	for line := range strings.Lines(content) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != strconv.Itoa(int(timeline)) {
			continue
		}
		lsn, err := change.ParseLSN(f[1])
		return lsn, err == nil, err
	}
	return 0, false, nil
}

// DropSlot drops the slot, so that the server no longer keeps WAL for it. It is no error if there is none.
func (s *Source) DropSlot(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = $1", s.cfg.Slot)
	if sqlstate(err) == "55006" {
		return slotError(s.cfg.Slot, err)
	}
	return wrap(ctx, "drop the slot", err)
}

// DropPublication drops the publication, if there is one. That it is ours is known by its name only.
func (s *Source) DropPublication(ctx context.Context) error {
	_, err := s.pool.Exec(ctx, "DROP PUBLICATION IF EXISTS "+quoteIdent(s.cfg.Publication))
	return wrap(ctx, "drop the publication", err)
}

// OwnsPublication says whether this role may drop the publication; false also where there is none.
func (s *Source) OwnsPublication(ctx context.Context) (bool, error) {
	var owns bool
	err := s.pool.QueryRow(ctx, `SELECT coalesce((SELECT pg_has_role(pubowner, 'USAGE') FROM pg_publication WHERE pubname = $1), false)`,
		s.cfg.Publication).Scan(&owns)
	return owns, wrap(ctx, "look who owns the publication", err)
}

// PublishedTables are those of the publication; false when there is none.
func (s *Source) PublishedTables(ctx context.Context) ([]string, bool, error) {
	p, err := s.publication(ctx)
	if p == nil || err != nil {
		return nil, false, err
	}
	return p.tables, true, nil
}
