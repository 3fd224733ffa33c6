package kafka

import (
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// contactLost is how long nobody must have answered before a cluster counts as away: one of several brokers that
// restarts, or an idle connection that was closed, is no outage.
const contactLost = 2 * time.Second

// contact notes whether brokers answer, whichever client asks. Clients that wait for a broker say nothing themselves: a
// poll returns later, a commit takes longer.
type contact struct {
	mu     sync.Mutex
	lost   time.Time // when the first attempt failed after the last answer; zero while somebody answers
	reason string
}

var (
	_ kgo.HookBrokerConnect = (*contact)(nil)
	_ kgo.HookBrokerRead    = (*contact)(nil)
)

// OnBrokerConnect implements a hook of the client library.
func (c *contact) OnBrokerConnect(_ kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err == nil { // it may still say nothing
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost.IsZero() {
		c.lost = time.Now()
	}
	c.reason = err.Error()
}

// OnBrokerRead implements a hook of the client library.
func (c *contact) OnBrokerRead(_ kgo.BrokerMetadata, _ int16, _ int, _, _ time.Duration, err error) {
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lost, c.reason = time.Time{}, ""
}

// Away says since when no broker has answered any client of this process, and why; an empty reason while one does. It
// asks nobody: a process that does nothing with Kafka learns nothing.
func (c *Cluster) Away() (reason string, since time.Time) {
	c.contact.mu.Lock()
	defer c.contact.mu.Unlock()
	if c.contact.lost.IsZero() || time.Since(c.contact.lost) < contactLost {
		return "", time.Time{}
	}
	return "no broker answers: " + c.contact.reason, c.contact.lost
}
