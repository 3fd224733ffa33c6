package postgres

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// talkative is a stream whose server, or something before it, goes on sending whatever we do.
func talkative(t *testing.T) *Stream {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	many := bytes.Repeat([]byte("N\x00\x00\x00\x05\x00"), 10_000)
	go func() {
		c, err := l.Accept()
		for err == nil {
			_, err = c.Write(many)
		}
	}()
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	src := &Source{cfg: Config{}.withDefaults()}
	return &Stream{src: src, wire: newWire(c, 1<<10, time.Millisecond), spill: newSpill(t.TempDir(), 1, &src.spillStats)}
}

// The end of a stream takes no longer than it may, however much goes on coming.
func TestStreamThatGoesOnEndsInTime(t *testing.T) {
	for name, end := range map[string]func(*Stream){
		"last words": func(st *Stream) { require.ErrorIs(t, st.lastWords(io.EOF), io.EOF) },
		"close":      func(st *Stream) { require.NoError(t, st.Close(context.WithoutCancel(t.Context()))) },
	} {
		t.Run(name, func(t *testing.T) {
			st := talkative(t)
			done := make(chan struct{})
			go func() { defer close(done); end(st) }()
			select {
			case <-done:
			case <-time.After(5 * time.Second):
				t.Fatal("it is still listened to")
			}
		})
	}
}
