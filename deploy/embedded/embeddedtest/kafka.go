package embeddedtest

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/shelfwire/shelfwire/deploy/embedded/apachekafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/kafka"
)

// Broker is where a test finds Kafka.
type Broker struct{ addr, prefix string }

// Addr is its host:port.
func (b *Broker) Addr() string { return b.addr }

// Prefix must begin the names of all topics that the test creates, as it may share
// the broker. Empty where it is alone: then the default prefix will do.
func (b *Broker) Prefix() string { return b.prefix }

// Kafka is a broker for this test: one in memory or, where the environment asks
// for it, the real one that the tests of this binary share. On that one the topics
// that begin with [Broker.Prefix] are deleted after the test. A test that makes a
// broker fail runs kfake by itself.
func Kafka(tb testing.TB, topics ...map[string]int32) *Broker {
	tb.Helper()
	all := map[string]int32{}
	for _, some := range topics {
		maps.Copy(all, some)
	}
	if !NeedsJava(tb) {
		return inMemory(tb, all)
	}
	b := &Broker{addr: realBroker(tb).Addr(), prefix: "test-" + strings.ToLower(rand.Text()) + "."}
	create(tb, b, all)
	tb.Cleanup(func() {
		if err := deleteTopics(b); err != nil {
			tb.Errorf("delete the topics of the test: %v", err)
		}
	})
	return b
}

// OwnKafka is a broker for this test alone, for topics whose names are given.
func OwnKafka(tb testing.TB) *Broker {
	tb.Helper()
	if !NeedsJava(tb) {
		return inMemory(tb, nil)
	}
	s, err := StartKafka(tb.Context(), filepath.Join(Dir(tb), "kafka"), 0)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Kill)
	remember(s.Addr())
	tb.Cleanup(func() {
		shared.Lock()
		defer shared.Unlock()
		shared.real = slices.DeleteFunc(shared.real, func(addr string) bool { return addr == s.Addr() })
	})
	return &Broker{addr: s.Addr()}
}

// NeedsJava reports whether tests are to run on Apache Kafka. Those of that broker
// itself skip where they are not: an ordinary test run needs no Java.
func NeedsJava(tb testing.TB) bool {
	tb.Helper()
	is, err := realKafka()
	if err != nil {
		tb.Fatal(err)
	}
	return is
}

func inMemory(tb testing.TB, topics map[string]int32) *Broker {
	tb.Helper()
	b, err := kafka.Start(context.Background(), kafka.Config{Topics: topics})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(b.Close)
	return &Broker{addr: b.Addr()}
}

// quickStart is for brokers that are not asked for much, and not for long.
var quickStart = []string{"-XX:TieredStopAtLevel=1"}

// KafkaServer is a broker in a process of its own.
type KafkaServer interface {
	Addr() string
	Done() <-chan struct{}
	Log() string
	Stop() error
	Kill()
}

// StartKafka runs a broker of the caller's own on dir, kfake or a real one, which
// is ready then. Port 0 takes a free one; give the last one again to let clients
// find a restarted broker.
func StartKafka(ctx context.Context, dir string, port int) (KafkaServer, error) {
	is, err := realKafka()
	if err != nil {
		return nil, err
	}
	if is {
		s, err := apachekafka.Start(ctx, apachekafka.Config{Dir: dir, Port: port, JVM: quickStart})
		if err != nil {
			return nil, err // not s, which would be a server that is not nil
		}
		return s, nil
	}
	s, err := kafka.StartProcess(ctx, kafka.Config{Dir: dir, Port: port})
	if err != nil {
		return nil, err // as above
	}
	return s, nil
}

// realBroker is the one that the tests of this binary share.
func realBroker(tb testing.TB) *apachekafka.Broker {
	tb.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.broker != nil {
		return shared.broker
	}
	dir, err := scratch()
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	b, err := apachekafka.Start(ctx, apachekafka.Config{
		Dir: filepath.Join(dir, "kafka"), JVM: quickStart, Progress: func(m string) { tb.Log(m) },
		// Tests write records of last year. By their age these would be removed after half a minute; and as time spans
		// more than a segment may, superseded ones would be compacted away after 15 s.
		Settings: map[string]string{"log.retention.ms": "-1", "log.cleaner.backoff.ms": "3600000"},
	})
	if err != nil {
		tb.Fatal(err)
	}
	shared.broker = b
	shared.real = append(shared.real, b.Addr())
	return b
}

func remember(addr string) {
	shared.Lock()
	defer shared.Unlock()
	shared.real = append(shared.real, addr)
}

// settling bounds the wait for what a broker does behind its answer.
const settling = time.Second

// Settle waits until what was committed to a topic can be read. Apache Kafka answers a commit once it is decided, and
// makes it visible in each partition a moment later; a test that reads up to the end would miss it. A transaction that
// was left open is not waited for longer than a second. With kfake there is nothing to wait for.
func Settle(ctx context.Context, topic string) error {
	shared.Lock()
	addrs := slices.Clone(shared.real)
	shared.Unlock()
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	for _, addr := range addrs {
		adm, err := clientOf(&Broker{addr: addr})
		if err != nil {
			return err
		}
		err = settle(ctx, adm, topic)
		adm.Close()
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

func settle(ctx context.Context, adm *kadm.Client, topic string) error {
	for {
		visible, err := adm.ListCommittedOffsets(ctx, topic)
		if err != nil {
			return err
		}
		written, err := adm.ListEndOffsets(ctx, topic)
		if err != nil {
			return err
		}
		open := false
		visible.Each(func(o kadm.ListedOffset) {
			at, _ := written.Lookup(o.Topic, o.Partition)
			open = open || at.Offset > o.Offset
		})
		if !open {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func create(tb testing.TB, b *Broker, topics map[string]int32) {
	tb.Helper()
	if len(topics) == 0 {
		return
	}
	adm, err := clientOf(b)
	if err != nil {
		tb.Fatal(err)
	}
	defer adm.Close()
	for name, partitions := range topics {
		if _, err := adm.CreateTopic(tb.Context(), partitions, 1, nil, b.prefix+name); err != nil {
			tb.Fatalf("create topic %s: %v", name, err)
		}
	}
}

// deleteTopics keeps the shared broker small.
func deleteTopics(b *Broker) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	adm, err := clientOf(b)
	if err != nil {
		return err
	}
	defer adm.Close()
	found, err := adm.ListTopics(ctx)
	if err != nil {
		return err
	}
	var names []string
	for name := range found {
		if strings.HasPrefix(name, b.prefix) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	answers, err := adm.DeleteTopics(ctx, names...)
	return errors.Join(err, answers.Error())
}

func clientOf(b *Broker) (*kadm.Client, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.addr))
	if err != nil {
		return nil, err
	}
	return kadm.NewClient(cl), nil
}
