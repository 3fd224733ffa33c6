package postgres

import (
	"context"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
)

// KeepPublished is [Source.EnsurePublication] for somebody who captures already. Where there is a publication, a table that
// is gone is told in the log and does not stop the others, after a restart too: a process that is started anew at night
// must not do less than one that ran on. Without one, at the first start, it is an error, as the name is most likely
// wrong. A table that this role may not add is an error until everything has been published once, as only then is it
// known that what is captured has been whole.
func (s *Source) KeepPublished(ctx context.Context, tables []string) error {
	p, err := s.publication(ctx)
	if err != nil {
		return err
	}
	existing := tables
	if p != nil || s.published.Load() {
		if existing, err = s.existing(ctx, tables); err != nil {
			return err
		}
	}
	err = s.EnsurePublication(ctx, existing)
	if err == nil {
		s.published.Store(true)
	}
	if err != nil && (!s.published.Load() || ctx.Err() != nil || away(err)) {
		return err
	}
	problem := ""
	if left := slices.DeleteFunc(slices.Clone(tables), func(t string) bool { return slices.Contains(existing, t) }); len(left) > 0 {
		problem = "there is no table " + strings.Join(left, ", ")
	}
	if err != nil {
		if p, perr := s.publication(ctx); perr != nil || p == nil {
			return err
		}
		problem = err.Error()
	}
	if old := s.unpublished.Swap(&problem); problem != "" && (old == nil || *old != problem) {
		s.cfg.Logger.ErrorContext(ctx, "a captured table is not published: nothing of it is captured until it is, and then it is read again", "problem", problem)
	}
	return nil
}

func (s *Source) existing(ctx context.Context, tables []string) ([]string, error) {
	rows, err := s.pool.Query(ctx, `
		SELECT n.nspname || '.' || c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname || '.' || c.relname = ANY ($1) AND c.relkind IN ('r', 'p')`, tables)
	var there []string
	if err == nil {
		there, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	return there, wrap(ctx, "look for tables", err)
}

// Memberships says of each of these tables that is published which table it is, which entry of the publication it has
// there, and which transaction has set the options of the publication. As long as they stay, the stream has had every
// change of it; a table that was dropped and made again, or taken out of the publication and put back, also by a new row
// filter or column list, has another entry, and a publication that did not publish deletes for a while other options.
func (s *Source) Memberships(ctx context.Context, tables []string) (map[string]string, error) {
	schemas := "NULL::oid"
	if s.version >= 150000 {
		schemas = "(SELECT pn.oid FROM pg_publication_namespace pn WHERE pn.pnpubid = p.oid AND pn.pnnspid = n.oid)"
	}
	rows, err := s.pool.Query(ctx, `
		SELECT n.nspname || '.' || c.relname, c.oid || '/' || coalesce(
			(SELECT pr.oid FROM pg_publication_rel pr WHERE pr.prpubid = p.oid AND pr.prrelid = c.oid), `+schemas+`, p.oid) || '/' || p.xmin
		FROM pg_publication p JOIN pg_publication_tables t ON t.pubname = p.pubname
		JOIN pg_namespace n ON n.nspname = t.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
		WHERE p.pubname = $1 AND n.nspname || '.' || c.relname = ANY ($2)`, s.cfg.Publication, tables)
	out := map[string]string{}
	if err == nil {
		var table, member string
		_, err = pgx.ForEachRow(rows, []any{&table, &member}, func() error {
			out[table] = member
			return nil
		})
	}
	return out, wrap(ctx, "read the publication", err)
}
