package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kerr"
	"golang.org/x/term"

	"github.com/shelfwire/shelfwire/cmd/shelfwire/config"
	"github.com/shelfwire/shelfwire/connectors/kafka"
	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/pipeline"
	"github.com/shelfwire/shelfwire/sinks/clickhouse"
)

func checkCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Test the configuration and every service it names, without changing anything",
		Long: "Reads the configuration, reaches every service that it names, and tries routes and documents query on the\n" +
			"database. Each problem is told with its place and the way to mend it. Nothing is changed.\n\n" +
			"  ✗  must be mended: run would refuse to start, or a service cannot be reached\n" +
			"  !  should be mended: run would start, and some changes or products would reach no shop\n" +
			"  ·  worth knowing\n\n" +
			"Exits with 0 when there are at most notes, with 2 when the configuration is to be mended, and else with 1.",
		Args: noArgs,
	}
	file := configFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		a, err := loadApp(*file)
		if err != nil {
			return err
		}
		defer a.close()
		r := &checkReport{out: cmd.OutOrStdout(), width: width(cmd.OutOrStdout())}
		tables := "clickhouse"
		if a.cfg.ClickHouse.URL == "" {
			tables += " (none is configured: nothing is kept for analysis)"
		}
		for _, part := range []struct {
			name string
			look func(context.Context) []problem
		}{
			{"source, routes and documents query", a.checkSourceParts},
			{"kafka", a.checked("kafka.brokers", a.checkKafka)},
			{"state", a.checked("state.url", a.checkStateOwner)},
			{tables, a.checked("clickhouse.url", a.checkTables)},
			{"shops", a.checkShops},
		} {
			found := part.look(cmd.Context())
			if err := cmd.Context().Err(); err != nil {
				return err // what was found is the stop's own doing
			}
			r.part(part.name, found)
		}
		return r.result()
	}
	return cmd
}

// problem is something that a check has found.
type problem struct {
	kind postgres.FindingKind
	// place is a file with line and column, or the part that is meant.
	place, text, mend string
}

// checkReport prints what was found and remembers the worst.
type checkReport struct {
	out                io.Writer
	width              int
	refuse, gaps, code int
}

// part prints one part: a tick, or its problems.
func (r *checkReport) part(name string, found []problem) {
	bad := slices.ContainsFunc(found, func(p problem) bool { return p.kind != postgres.FindingNote })
	if !bad {
		_, _ = fmt.Fprintln(r.out, "✓", name)
	}
	for _, p := range found {
		sign := "✗"
		switch p.kind {
		case postgres.FindingNote:
			sign = "·"
		case postgres.FindingGap:
			sign = "!"
			r.gaps++
			r.code = exitUsage
		case postgres.FindingMistake:
			r.refuse++
			r.code = exitUsage
		default:
			r.refuse++
			r.code = max(r.code, exitError)
		}
		_, _ = fmt.Fprintln(r.out, sign, p.place)
		_, _ = fmt.Fprint(r.out, wrap(p.text, r.width, "    "), wrap("→ "+p.mend, r.width, "    "))
	}
}

func (r *checkReport) result() error {
	switch {
	case r.refuse == 0 && r.gaps == 0:
		return nil
	case r.gaps == 0:
		return &exitCode{r.code, fmt.Errorf("%s must be mended before shelfwire run", count(r.refuse, "problem"))}
	case r.refuse == 0:
		return &exitCode{r.code, fmt.Errorf("%s should be mended: shelfwire run would start, and not reach all shops", count(r.gaps, "problem"))}
	}
	return &exitCode{r.code, fmt.Errorf("%s must be mended before shelfwire run, and %d more should be", count(r.refuse, "problem"), r.gaps)}
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// checked makes problems of one service's error.
func (a *app) checked(key string, check func(context.Context) error) func(context.Context) []problem {
	return func(ctx context.Context) []problem {
		if err := check(ctx); err != nil {
			return []problem{a.serviceProblem(key, err)}
		}
		return nil
	}
}

// serviceProblem says what is wrong with the service that a key of the configuration names.
func (a *app) serviceProblem(key string, err error) problem {
	kind, e := a.serviceError(key, err)
	return problem{kind: kind, place: place(e), text: e.Problem, mend: e.Mend}
}

// serviceError gives an error of a service the place where it is named, and tells a mistake from a service that is
// away, or that refuses.
func (a *app) serviceError(key string, err error) (postgres.FindingKind, *config.Error) {
	text := oneLine(err.Error())
	_, pg := errors.AsType[*pgconn.PgError](err)
	_, ch := errors.AsType[*clickhouse.ServerError](err)
	_, broker := errors.AsType[*kerr.Error](err)
	if t, ok := errors.AsType[*kafka.TopicError](err); ok {
		return postgres.FindingMistake, a.cfg.At("kafka.partitions",
			fmt.Sprintf("topic %s has %d partitions and %d are configured: the order per product rests on their number", t.Topic, t.Have, t.Want),
			fmt.Sprintf("set kafka.partitions to %d, or use another kafka.prefix and take a new snapshot", t.Have))
	}
	if f, ok := errors.AsType[*pipeline.ForeignTopicsError](err); ok {
		return postgres.FindingMistake, a.cfg.At("kafka.prefix", f.Problem(), f.Mend())
	}
	switch parse, ok := errors.AsType[*pgconn.ParseConfigError](err); {
	case ok: // its own text repeats the address, which is a secret
		return postgres.FindingMistake, a.cfg.At(key, key+" is no connection string of Postgres: "+oneLine(errors.Unwrap(parse).Error()),
			"write postgres://USER:PASSWORD@HOST:PORT/DATABASE")
	case away(err):
		return postgres.FindingAway, a.cfg.At(key, text, mendService(key, err))
	case pg || ch || broker:
		return postgres.FindingSource, a.cfg.At(key, text, mendService(key, err))
	}
	return postgres.FindingMistake, a.cfg.At(key, text, mendService(key, err))
}

// mendService says what to do about a service that does not answer as it should.
func mendService(key string, err error) string {
	pg, answered := errors.AsType[*pgconn.PgError](err)
	_, name := errors.AsType[*net.DNSError](err)
	switch {
	case answered && strings.HasPrefix(pg.Code, "28"):
		return "correct user and password in " + key + ", or let the role in by pg_hba.conf"
	case answered && pg.Code == "3D000":
		return "create the database (setup.sql of shelfwire init does), or correct its name in " + key
	case name:
		return "correct the host in " + key + ", or the name service of this machine"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "start the service, or correct host and port in " + key
	case away(err):
		return "see that the service runs and that this machine may reach it, or correct " + key
	}
	return "mend what the error says, or correct " + key
}

// place is where an error of the configuration stands.
func place(e *config.Error) string {
	if e.Line == 0 {
		return e.File
	}
	return fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Column)
}

// checkStateOwner reaches the state, and sees whether the topics are those of another one. Where Kafka is away, that is
// told with Kafka.
func (a *app) checkStateOwner(ctx context.Context) error {
	if err := a.checkState(ctx); err != nil {
		return err
	}
	cluster, err := kafka.New(kafkaConfig(a.cfg, nil))
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	defer cluster.Close()
	if err := attempt(ctx, cluster.Ping); err != nil {
		return nil //nolint:nilerr // see above
	}
	incarnation, err := a.state.Incarnation(ctx)
	if noTable(err) {
		incarnation.ID, err = "not made yet", nil
	}
	if err != nil {
		return err
	}
	err = ownTopics(ctx, cluster, incarnation)
	if errors.Is(err, kerr.UnknownTopicOrPartition) { // made by the first run
		return nil
	}
	return err
}

// checkSourceParts opens the source and looks at everything that is needed of it.
func (a *app) checkSourceParts(ctx context.Context) []problem {
	if err := a.openSource(ctx); err != nil {
		return []problem{a.serviceProblem("source.url", err)}
	}
	var list []problem
	for _, f := range a.findings(ctx) {
		p := problem{kind: f.Kind, place: f.Where, text: oneLine(f.Problem), mend: f.Mend}
		if e := a.placed(f); e != nil {
			p.place, p.text = place(e), e.Problem
		}
		list = append(list, p)
	}
	return list
}

// checkShops asks each shop for its settings, which proves address and token.
func (a *app) checkShops(ctx context.Context) []problem {
	if err := a.openShops(&soloBudget{}); err != nil {
		return []problem{a.serviceProblem("shops", err)}
	}
	var list []problem
	for _, name := range slices.Sorted(maps.Keys(a.cfg.Shops)) {
		err := a.shops.Probe(ctx, name)
		for tries := 1; err != nil && tries < 3 && ctx.Err() == nil; tries++ { // one answer may get lost
			select {
			case <-time.After(500 * time.Millisecond):
			case <-ctx.Done():
			}
			err = a.shops.Probe(ctx, name)
		}
		if err != nil {
			e := a.cfg.At("shops."+name, oneLine(err.Error()), fmt.Sprintf("correct url and token of shops.%s, or let the shop answer first", name))
			list = append(list, problem{kind: postgres.FindingAway, place: place(e), text: e.Problem, mend: e.Mend})
		}
	}
	return list
}

// captured are the tables that have been captured before, as far as Kafka is open and tells.
func (a *app) captured(ctx context.Context) []string {
	if a.cluster == nil {
		return nil
	}
	pos, _, err := a.cluster.ReadPosition(ctx, kafka.CapturePartition, "capture/"+a.cfg.Source.Slot)
	if err != nil {
		a.log.WarnContext(ctx, "which tables have been captured is not known", "error", err)
	}
	return slices.AppendSeq(pos.Gone, maps.Keys(pos.Published))
}

// findings compares the configuration with the source.
func (a *app) findings(ctx context.Context) []postgres.Finding {
	return a.source.Check(ctx, postgres.Declared{
		Captured: a.captured(ctx),
		Routes:   a.cfg.Routes, Mirrored: a.mirror().Tables, Documents: a.cfg.Documents, Unrouted: a.cfg.Unrouted, Shops: slices.Sorted(maps.Keys(a.cfg.Shops)),
	})
}

// placed is a finding at its place in the configuration; nil where none is meant.
func (a *app) placed(f postgres.Finding) *config.Error {
	switch text := f.Where + ": " + oneLine(f.Problem); {
	case f.Key == "":
		return nil
	case f.Offset > 0:
		return a.cfg.AtText(f.Key, f.Offset, text, f.Mend)
	default:
		return a.cfg.At(f.Key, text, f.Mend)
	}
}

// awayError is a finding that will not be one later.
type awayError struct{ problem string }

func (e *awayError) Error() string { return e.problem }

// checkSource refuses to start half: routes, documents query and replica identities are looked at first. What leaves a
// gap is said and does not stop anything.
func (a *app) checkSource(ctx context.Context) error {
	var errs []error
	code := exitError
	for _, f := range a.findings(ctx) {
		err := fmt.Errorf("%s: %s; %s", f.Where, oneLine(f.Problem), f.Mend)
		if e := a.placed(f); e != nil {
			err = e
		}
		switch f.Kind {
		case postgres.FindingAway:
			return &awayError{oneLine(f.Problem)}
		case postgres.FindingGap:
			a.log.WarnContext(ctx, "changes or products will reach no shop", "finding", err.Error())
		case postgres.FindingNote:
			a.log.InfoContext(ctx, "noticed in the source", "finding", err.Error())
		case postgres.FindingMistake:
			code = exitUsage
			errs = append(errs, err)
		default:
			errs = append(errs, err)
		}
	}
	if len(errs) > 0 {
		return &exitCode{code, errors.Join(errs...)}
	}
	return nil
}

// width is how many columns text may take: a terminal's own, and else 100.
func width(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
			return n
		}
	}
	return 100
}

// wrap breaks a text at its spaces into indented lines of at most so many columns. A longer word stays whole, so that
// it can be copied.
func wrap(text string, columns int, indent string) string {
	var b strings.Builder
	at := 0
	for word := range strings.FieldsSeq(text) {
		n := len([]rune(word))
		switch {
		case at == 0:
			b.WriteString(indent)
			at = len(indent)
		case at+1+n > columns:
			b.WriteString("\n" + indent)
			at = len(indent)
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(word)
		at += n
	}
	if at > 0 {
		b.WriteByte('\n')
	}
	return b.String()
}
