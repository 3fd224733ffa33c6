package apachekafka

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// Config of one broker.
type Config struct {
	// Dir holds the broker's data, settings and log between starts. It is created.
	// Required.
	Dir string
	// Port on 127.0.0.1; 0 takes a free one. Give the last one again to let clients
	// find a restarted broker.
	Port int
	// Settings are broker settings, over the defaults of this package.
	Settings map[string]string
	// HeapMB bounds the heap of the Java machine; it takes about 100 MB beside it.
	// 0 is 512.
	HeapMB int
	// JVM are further options of the Java machine. Tests that start many brokers stop
	// at its first compiler (-XX:TieredStopAtLevel=1), which spares a third of a start.
	JVM []string
	// Progress is told, in sentences for a person, what takes time. Nil: nobody is.
	Progress func(message string)

	// Java is the program to run. Empty: java in PATH.
	Java string
	// CacheDir keeps the jars, 45 MB. Empty: below embedded.BaseDir.
	CacheDir string
}

func (c Config) progress(format string, args ...any) {
	if c.Progress != nil {
		c.Progress(fmt.Sprintf(format, args...))
	}
}

// Broker is a running or ended broker. Its methods may be called concurrently.
type Broker struct {
	port int
	proc *child.Server
}

// lockGrace is how long a start waits for the end of another broker on its
// directory: the kernel needs a moment to end one whose parent was killed.
const lockGrace = 2 * time.Second

// Start runs a broker on c.Dir and returns when it answers clients. Topics are
// never created by a mere request for them. A second start on the same directory
// is an error that says so.
func Start(ctx context.Context, c Config) (*Broker, error) {
	if c.Dir == "" {
		return nil, errors.New("start Apache Kafka: no directory")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("start Apache Kafka: %w", err)
	}
	c.Dir = dir
	m := machine{options: append([]string{"-Xmx" + strconv.Itoa(cmp.Or(c.HeapMB, 512)) + "m"}, c.JVM...)}
	if m.java, err = findJava(ctx, c.Java); err != nil {
		return nil, fmt.Errorf("start Apache Kafka: %w", err)
	}
	if m.classPath, err = classPath(ctx, c); err != nil {
		return nil, fmt.Errorf("start Apache Kafka: %w", err)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start Apache Kafka: %w", err)
	}
	graceful, cancel := context.WithTimeout(ctx, lockGrace)
	defer cancel()
	lock, err := host.WaitLock(graceful, filepath.Join(c.Dir, "lock"), func() {})
	if err != nil {
		return nil, fmt.Errorf("start Apache Kafka: another one runs in %s: %w", c.Dir, err)
	}
	b, err := start(ctx, c, m, lock)
	if err != nil {
		lock.Unlock()
		return nil, fmt.Errorf("start Apache Kafka in %s: %w", c.Dir, err)
	}
	return b, nil
}

func start(ctx context.Context, c Config, m machine, lock *host.Lock) (*Broker, error) {
	s := store{dir: c.Dir}
	cluster, err := s.format(ctx, c, m)
	if err != nil {
		return nil, err
	}
	b := &Broker{}
	b.proc, err = child.Serve(ctx, lock, passing, func() (*child.Process, error) {
		ports := [2]int{c.Port, 0}
		for i, port := range ports {
			if port == 0 {
				if ports[i], err = host.FreePort(ctx); err != nil {
					return nil, err
				}
			}
		}
		b.port = ports[0]
		if err := s.write(settings(c, s.logs(), ports[0], ports[1])); err != nil {
			return nil, err
		}
		return b.run(ctx, s, m, lock, cluster)
	})
	if err != nil {
		return nil, err
	}
	return b, nil
}

// passing is the reason of a failed start that goes away: a port was taken
// between looking and binding.
var passing = []string{"Address already in use"}

// run starts the broker and returns when it answers.
func (b *Broker) run(ctx context.Context, s store, m machine, lock *host.Lock, cluster string) (*child.Process, error) {
	cmd := exec.Command(m.java, m.args("kafka.Kafka", s.settings())...) //nolint:noctx // it outlives ctx, which only bounds the start
	cmd.Dir = s.dir
	cmd.ExtraFiles = []*os.File{lock.File()} // held as long as the child lives
	// Ctrl-C must not reach it before its clients are closed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	proc, err := child.Start(cmd, filepath.Join(s.dir, "kafka.log"), syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	return proc, proc.AwaitReady(ctx, func() (bool, error) { return answers(ctx, b.Addr(), cluster), nil })
}

// answers reports whether the broker of that cluster knows of itself. Before that
// it is fenced, and can have no partition. A broker of others may answer at the
// address while ours is about to find its port taken.
func answers(ctx context.Context, addr, cluster string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return false // at once, where a client would try again
	}
	_ = conn.Close()
	cl, err := kgo.NewClient(kgo.SeedBrokers(addr), kgo.RequestRetries(0))
	if err != nil {
		return false
	}
	defer cl.Close()
	req := kmsg.NewMetadataRequest()
	req.Topics = []kmsg.MetadataRequestTopic{} // none; nil would be all
	resp, err := req.RequestWith(ctx, cl)
	return err == nil && resp.ClusterID != nil && *resp.ClusterID == cluster && len(resp.Brokers) > 0
}

// settings of a broker that is alone and shall be back soon after its death.
func settings(c Config, logs string, port, controller int) map[string]string {
	client, own := loopback(port), loopback(controller)
	all := map[string]string{
		"process.roles": "broker,controller", "node.id": "1", "controller.quorum.voters": "1@" + own,
		"listeners":                      "PLAINTEXT://" + client + ",CONTROLLER://" + own,
		"advertised.listeners":           "PLAINTEXT://" + client,
		"listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"controller.listener.names":      "CONTROLLER", "inter.broker.listener.name": "PLAINTEXT",
		"log.dirs":                     logs,
		"auto.create.topics.enable":    "false",
		"broker.session.timeout.ms":    "2000",
		"broker.heartbeat.interval.ms": "200",
		// The cleaner's buffer is heap, 128 MiB by default.
		"log.cleaner.dedupe.buffer.size": "16777216",
		// A first group member waits 3 s for others by default.
		"group.initial.rebalance.delay.ms": "0",
	}
	for topic, prefix := range map[string]string{
		"offsets": "offsets.topic.", "transactions": "transaction.state.log.", "share": "share.coordinator.state.topic.",
	} {
		all[prefix+"replication.factor"], all[prefix+"num.partitions"] = "1", "4"
		if topic != "offsets" { // which has no such setting
			all[prefix+"min.isr"] = "1"
		}
	}
	maps.Copy(all, c.Settings)
	return all
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Addr is the broker's host:port, to be given to clients as the seed.
func (b *Broker) Addr() string { return loopback(b.port) }

// Port on 127.0.0.1.
func (b *Broker) Port() int { return b.port }

// PID of the Java machine: kill it with SIGKILL for a crash.
func (b *Broker) PID() int { return b.proc.PID() }

// Done is closed when the broker has ended, for whatever reason, and its
// directory is free for another start.
func (b *Broker) Done() <-chan struct{} { return b.proc.Done() }

// Log is the end of what the broker has printed since it started.
func (b *Broker) Log() string { return b.proc.Log() }

// Stop ends the broker cleanly: its next start has nothing to recover.
func (b *Broker) Stop() error {
	err := b.proc.Stop(b.proc.Signal(syscall.SIGTERM, 15*time.Second))
	if ended, ok := errors.AsType[*exec.ExitError](err); ok && ended.ExitCode() == 128+int(syscall.SIGTERM) {
		return nil
	}
	return err
}

// Kill ends the broker with SIGKILL, as a crash would.
func (b *Broker) Kill() { b.proc.Kill() }

// store is what stands in Config.Dir.
type store struct{ dir string }

func (s store) logs() string      { return filepath.Join(s.dir, "logs") }
func (s store) settings() string  { return filepath.Join(s.dir, "server.properties") }
func (s store) formatted() string { return filepath.Join(s.dir, "formatted") }

// write replaces the broker's settings.
func (s store) write(settings map[string]string) error {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(settings)) {
		// A backslash escapes in such a file, also in a path.
		fmt.Fprintf(&b, "%s=%s\n", k, strings.ReplaceAll(settings[k], `\`, `\\`))
	}
	return os.WriteFile(s.settings(), []byte(b.String()), 0o600)
}
