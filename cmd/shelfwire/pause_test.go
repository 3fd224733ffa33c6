package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/schemas/event"
	"github.com/shelfwire/shelfwire/schemas/work"
	"github.com/shelfwire/shelfwire/sinks/state"
)

// desk is a state and a configuration that leads to it: what somebody needs who operates what others run.
type desk struct {
	t     *testing.T
	file  string
	state *state.Store
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t}
	url := embeddedtest.NewDatabase(t, embeddedtest.Postgres(t))
	var err error
	d.state, err = state.Open(t.Context(), state.Config{URL: url})
	require.NoError(t, err)
	t.Cleanup(d.state.Close)
	require.NoError(t, d.state.Migrate(t.Context()))
	dir := filepath.Join(t.TempDir(), "conf")
	code, out := shelfwire(t, "init", dir)
	require.Equal(t, exitOK, code, out)
	d.file = filepath.Join(dir, "shelfwire.yaml")
	text, err := os.ReadFile(d.file)
	require.NoError(t, err)
	from, to := strings.Index(string(text), "  main:\n"), strings.Index(string(text), "# What a shop shall have")
	shops := "  north: {url: \"http://127.0.0.1:1/north\", token: \"${SHOP_TOKEN}\"}\n  south: {url: \"http://127.0.0.1:1/south\", token: \"${SHOP_TOKEN}\"}\n\n"
	require.NoError(t, os.WriteFile(d.file, []byte(string(text[:from])+shops+string(text[to:])), 0o600))
	for name, value := range map[string]string{
		"SOURCE_URL": "postgres://x@127.0.0.1:1/x", "KAFKA_BROKER": "127.0.0.1:1", "STATE_URL": url, "CLICKHOUSE_URL": "", "SHOP_TOKEN": "x",
	} {
		t.Setenv(name, value)
	}
	return d
}

// run runs a command that succeeds and reads what it prints into v.
func (d *desk) run(v any, args ...string) {
	d.t.Helper()
	code, out := shelfwire(d.t, append(args, "-c", d.file)...)
	require.Equal(d.t, exitOK, code, out)
	require.NoError(d.t, json.Unmarshal([]byte(out), v), out)
}

// fails runs a command that cannot be done, and tells why.
func (d *desk) fails(want string, args ...string) {
	d.t.Helper()
	code, out := shelfwire(d.t, append(args, "-c", d.file)...)
	require.Equal(d.t, exitError, code, out)
	require.Contains(d.t, out, want)
}

func TestPauseAndResumeAsAUserSeesIt(t *testing.T) {
	d := newDesk(t)
	require.NoError(t, d.state.Park(t.Context(), []work.Parked{{ProductID: "p", Lane: work.LaneCampaign, Reason: "REPLAY", CampaignID: "replay/1"}}))
	pull := func() int {
		got, err := d.state.Pull(t.Context(), work.Pull{Partitions: []int32{0}, Default: 9, N: 9})
		require.NoError(t, err)
		return len(got.Parked)
	}
	var list []pauseView
	for _, flags := range [][]string{{"--all"}, {"--lane", "campaign"}, {"--campaign", "replay/1"}} {
		d.run(&list, append([]string{"pause"}, flags...)...)
		require.Len(t, list, 1)
		require.Equal(t, strings.TrimPrefix(flags[0], "--"), list[0].Kind)
		require.NotEmpty(t, list[0].By)
		require.WithinDuration(t, time.Now(), list[0].Since, time.Minute)
		require.Zero(t, pull(), flags)
		d.fails("is paused already", append([]string{"pause"}, flags...)...)
		d.run(&list, append([]string{"resume"}, flags...)...)
		require.Empty(t, list)
		require.Equal(t, 1, pull(), flags)
		d.fails("is not paused; shelfwire pause lists what is", append([]string{"resume"}, flags...)...)
	}
	d.run(&list, "pause", "--shop", "north")
	d.run(&list, "pause")
	require.Equal(t, []string{"shop", "north"}, []string{list[0].Kind, list[0].Name})
	pauses, err := d.state.Pauses(t.Context())
	require.NoError(t, err)
	require.True(t, pauses.Stops("north", work.LaneLive))
	require.False(t, pauses.Stops("south", work.LaneLive))
	d.fails(`there is no shop "nroth" in the configuration (did you mean north?); shops are north, south`, "pause", "--shop", "nroth")
	d.fails(`there is no campaign "replay/2"; shelfwire campaigns lists them`, "pause", "--campaign", "replay/2")
}

func TestExcludeAndIncludeAsAUserSeesIt(t *testing.T) {
	d := newDesk(t)
	var list []excludedView
	d.run(&list, "exclude", "4711")
	d.run(&list, "exclude", "4711", "--shop", "south")
	require.Len(t, list, 2)
	require.Equal(t, []string{"4711", "", "south"}, []string{list[0].Product, list[0].Shop, list[1].Shop})
	d.fails("product 4711 is excluded already", "exclude", "4711")
	d.fails(`there is no shop "west"`, "exclude", "1", "--shop", "west")
	d.run(&list, "include", "4711")
	require.Len(t, list, 1)
	d.fails("product 4711 is not excluded from every shop; shelfwire exclude lists what is", "include", "4711")
	d.fails("product 4711 is not excluded from the shop north", "include", "4711", "--shop", "north")
	l, err := d.state.Load(t.Context(), []string{"4711"})
	require.NoError(t, err)
	require.Len(t, l.Parked, 1, "its shops get what they have missed")
}

func TestCampaignsAsAUserSeesThem(t *testing.T) {
	d := newDesk(t)
	var list []campaignView
	d.run(&list, "campaigns")
	require.Empty(t, list)
	require.NoError(t, d.state.Park(t.Context(), []work.Parked{
		{ProductID: "p", Lane: work.LaneCampaign, Reason: "REPLAY", CampaignID: "replay/1"}, {ProductID: "q", Lane: work.LaneCampaign, Reason: "REPLAY", CampaignID: "replay/1"},
	}))
	d.run(&list, "campaigns", "--open")
	require.Len(t, list, 1)
	require.Equal(t, []any{"replay/1", "replay", "RUNNING", int64(2), int64(0), int64(2)},
		[]any{list[0].ID, list[0].Kind, list[0].Status, list[0].Total, list[0].Done, list[0].Parked})
	var paused []pauseView
	d.run(&paused, "pause", "--campaign", "replay/1")
	var one campaignView
	d.run(&one, "campaigns", "replay/1")
	require.Equal(t, "PAUSED", one.Status)
	d.run(&one, "campaigns", "replay/1", "--cancel")
	require.Equal(t, []any{"CANCELLED", int64(0)}, []any{one.Status, one.Parked})
	_, err := d.state.Complete(t.Context())
	require.NoError(t, err)
	d.fails("campaign replay/1 has ended; there is nothing to cancel", "campaigns", "replay/1", "--cancel")
	d.fails(`there is no campaign "x"; shelfwire campaigns lists them`, "campaigns", "x")

	left := 90.4
	var out bytes.Buffer
	require.NoError(t, campaignTable([]campaignView{{ID: "b", Kind: "snapshot", Status: "RUNNING", Total: 10, Done: 1, Rate: 0.1, Left: &left}}).write(&out))
	require.Equal(t, "CAMPAIGN  KIND      STATUS   DONE  OF   RATE   LEFT   NAME\nb         snapshot  RUNNING  1     10+  0.1/s  1m30s  \n", out.String())
}

func TestABatchIsCancelledAndRetriedAsAUserSeesIt(t *testing.T) {
	d := newDesk(t)
	ctx := t.Context()
	leases, err := d.state.Renew(ctx, work.StagePush, "w", 1, time.Minute)
	require.NoError(t, err)
	push := []work.Fence{leases[0].Fence}
	leases, err = d.state.Renew(ctx, work.StageBatches, "w", 1, time.Minute)
	require.NoError(t, err)
	for _, id := range []string{"b1", "b2"} {
		require.NoError(t, d.state.TakeIn(ctx, work.TakeIn{
			Fences: push, Batches: []event.Batch{{ID: id}}, Items: []work.Item{{BatchID: id, ProductID: "p"}},
		}))
		require.NoError(t, d.state.Announce(ctx, []work.Fence{leases[0].Fence}, []event.Batch{{Type: event.BatchAnnounced, ID: id, Name: "run " + id}}, nil))
	}
	var b batchView
	d.run(&b, "batches", "run b1", "--cancel") // by its name
	require.Equal(t, []any{"b1", true, 1}, []any{b.ID, b.Cancelling, b.Cancelled})
	d.fails("batch b1 is being cancelled; wait until it has ended", "batches", "b1", "--retry")
	_, err = d.state.Complete(ctx)
	require.NoError(t, err)
	d.fails("batch b1 has ended as CANCELLED; there is nothing to cancel", "batches", "b1", "--cancel")
	d.fails("batch b1 has no failed item; there is nothing to retry", "batches", "b1", "--retry")
	d.fails(`there is no batch with the id or the name "b3"`, "batches", "b3", "--cancel")

	for round := 1; round <= batchRetries+1; round++ {
		failed := work.Item{BatchID: "b2", ProductID: "p", Status: work.ItemFailed, Category: event.Validation}
		require.NoError(t, d.state.Settle(ctx, work.Settlement{Fences: push, Items: []work.Item{failed}}))
		_, err = d.state.Complete(ctx)
		require.NoError(t, err)
		if round <= batchRetries {
			d.run(&b, "batches", "b2", "--retry")
			require.Equal(t, []any{round + 1, 1, 0}, []any{b.Round, b.Processing, b.Failed})
		}
	}
	d.fails("what has failed in batch b2 was retried 3 times: 1 item; a change of the product pushes it again", "batches", "b2", "--retry")
}
