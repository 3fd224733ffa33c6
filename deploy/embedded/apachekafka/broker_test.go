package apachekafka_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/deploy/embedded/apachekafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/childtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

func TestMain(m *testing.M) {
	childtest.Hook(func(dir string) (int, error) {
		b, err := apachekafka.Start(context.Background(), apachekafka.Config{Dir: dir})
		if err != nil {
			return 0, err
		}
		return b.PID(), nil
	})
	embeddedtest.Main(m)
}

// needJava skips a test that starts a broker, unless it is asked for.
func needJava(t *testing.T) {
	t.Helper()
	if !embeddedtest.NeedsJava(t) {
		t.Skip("needs Java, Maven and 45 MB of jars: SHELFWIRE_TEST_KAFKA=apache runs it")
	}
}

func start(t *testing.T, c apachekafka.Config) *apachekafka.Broker {
	t.Helper()
	c.JVM = []string{"-XX:TieredStopAtLevel=1"}
	b, err := apachekafka.Start(t.Context(), c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Stop()) })
	return b
}

func client(t *testing.T, b *apachekafka.Broker, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	c, err := kgo.NewClient(append(opts, kgo.SeedBrokers(b.Addr()))...)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// What was acknowledged is there after a crash and after a clean stop, under the
// same address; a transaction that was open at the crash is not.
func TestRestartOnKeptData(t *testing.T) {
	needJava(t)
	c := apachekafka.Config{Dir: t.TempDir(), Settings: map[string]string{"num.partitions": "3"}}
	b := start(t, c)
	adm := kadm.NewClient(client(t, b))
	_, err := adm.CreateTopic(t.Context(), -1, -1, nil, "topic")
	require.NoError(t, err)
	found, err := adm.ListTopics(t.Context(), "topic")
	require.NoError(t, err)
	require.Len(t, found["topic"].Partitions, 3, "the setting holds")

	p := client(t, b, kgo.DefaultProduceTopic("topic"), kgo.TransactionalID("id"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	write := func(value string, end kgo.TransactionEndTry) {
		require.NoError(t, p.BeginTransaction())
		require.NoError(t, p.ProduceSync(t.Context(), kgo.StringRecord(value)).FirstErr())
		require.NoError(t, p.EndTransaction(t.Context(), end))
	}
	write("kept", kgo.TryCommit)
	require.NoError(t, p.BeginTransaction())
	require.NoError(t, p.ProduceSync(t.Context(), kgo.StringRecord("open")).FirstErr())
	b.Kill()
	<-b.Done()

	c.Port = b.Port()
	b = start(t, c)
	require.NoError(t, p.EndTransaction(t.Context(), kgo.TryAbort), "the same producer goes on")
	write("later", kgo.TryCommit)
	require.NoError(t, b.Stop())
	require.NotContains(t, b.Log(), "ERROR")

	b = start(t, c)
	r := client(t, b, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"topic": {0: kgo.NewOffset().AtStart()}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	var got []string
	for len(got) < 2 {
		fs := r.PollFetches(t.Context())
		require.NoError(t, fs.Err())
		fs.EachRecord(func(rec *kgo.Record) { got = append(got, string(rec.Value)) })
	}
	require.Equal(t, []string{"kept", "later"}, got)
}

func TestATopicIsNotMadeByAskingForIt(t *testing.T) {
	needJava(t)
	b := start(t, apachekafka.Config{Dir: t.TempDir()})
	c := client(t, b, kgo.DefaultProduceTopic("nosuch"), kgo.UnknownTopicRetries(1))
	require.ErrorIs(t, c.ProduceSync(t.Context(), kgo.StringRecord("x")).FirstErr(), kerr.UnknownTopicOrPartition)
}

// Two brokers on one directory would destroy it.
func TestSecondStartOnTheSameDirectory(t *testing.T) {
	needJava(t)
	dir := t.TempDir()
	b := start(t, apachekafka.Config{Dir: dir})
	_, err := apachekafka.Start(t.Context(), apachekafka.Config{Dir: dir})
	require.ErrorIs(t, err, host.ErrLocked)
	require.ErrorContains(t, err, dir)
	require.NoError(t, client(t, b).Ping(t.Context()), "the first one does not notice")
}

// A broker whose parent was killed ends too, and until it has ended nobody else can
// have its directory.
func TestBrokerEndsWithAKilledParent(t *testing.T) {
	needJava(t)
	dir := t.TempDir()
	childtest.KillParent(t, dir)
	start(t, apachekafka.Config{Dir: dir})
}

func TestDoneAfterACrashFromOutside(t *testing.T) {
	needJava(t)
	dir := t.TempDir()
	b := start(t, apachekafka.Config{Dir: dir})
	require.NoError(t, syscall.Kill(b.PID(), syscall.SIGKILL))
	<-b.Done()
	start(t, apachekafka.Config{Dir: dir, Port: b.Port()})
}

func TestABrokenSettingSaysSo(t *testing.T) {
	needJava(t)
	_, err := apachekafka.Start(t.Context(), apachekafka.Config{Dir: t.TempDir(), Settings: map[string]string{"num.partitions": "many"}})
	require.ErrorContains(t, err, "num.partitions")
}

// What is missing is told with the way to install it.
func TestWithoutJavaOrMaven(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	_, err := apachekafka.Start(t.Context(), apachekafka.Config{Dir: t.TempDir(), CacheDir: t.TempDir()})
	require.ErrorContains(t, err, "apt-get install openjdk-17-jre-headless")

	java := filepath.Join(bin, "java")
	says := func(version string) {
		require.NoError(t, os.WriteFile(java, []byte("#!/bin/sh\necho 'openjdk version \""+version+"\"' >&2\n"), 0o700))
	}
	says("11.0.2")
	_, err = apachekafka.Start(t.Context(), apachekafka.Config{Dir: t.TempDir(), CacheDir: t.TempDir()})
	require.ErrorContains(t, err, "is Java 11, and 17 or newer is needed")

	says("21.0.1")
	_, err = apachekafka.Start(t.Context(), apachekafka.Config{Dir: t.TempDir(), CacheDir: t.TempDir()})
	require.ErrorContains(t, err, "apt-get install maven")
}

// A jar that is not the pinned one is refused, and nothing looks like an installation then.
func TestAnotherJarIsRefused(t *testing.T) {
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for name, script := range map[string]string{
		"java": `echo 'openjdk version "17.0.1"' >&2`,
		"mvn":  `for a; do case $a in -DoutputDirectory=*) cd "${a#*=}"; while read sum name; do echo wrong >$name; done <` + sums(t) + `;; esac; done`,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script+"\n"), 0o700))
	}
	cache := t.TempDir()
	_, err := apachekafka.Start(t.Context(), apachekafka.Config{Dir: t.TempDir(), CacheDir: cache})
	require.ErrorContains(t, err, "is not the pinned one")
	left, err := filepath.Glob(filepath.Join(cache, "*"))
	require.NoError(t, err)
	for _, name := range left {
		require.True(t, strings.HasSuffix(name, ".lock"), name)
	}
}

func sums(t *testing.T) string {
	t.Helper()
	file, err := filepath.Abs("jars.sum")
	require.NoError(t, err)
	return file
}
