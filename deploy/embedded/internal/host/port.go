package host

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
)

// Ports below the usual start of the ephemeral range (32768 on Linux, 49152
// elsewhere) and above the well-known services.
const (
	lowestPort  = 20000
	highestPort = 32000
)

// FreePort finds a loopback TCP port that is free now, outside the range from
// which the kernel takes the ports of outgoing connections. That matters to a
// server that is killed and comes back on its port: in that range a client that
// retries in a loop is one day given the very port that it dials, connects to
// itself, and the server finds its address in use.
//
// The port is not reserved: a caller retries when someone else was faster.
func FreePort(ctx context.Context) (int, error) {
	high := highestPort
	if b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		var first, last int
		if n, _ := fmt.Sscan(string(b), &first, &last); n == 2 && first > lowestPort+1000 {
			high = min(high, first-1)
		}
	}
	var lc net.ListenConfig
	for range 100 {
		port := lowestPort + rand.IntN(high-lowestPort)
		l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			return 0, err
		}
		return port, nil
	}
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0") // a crowded machine: any port is better than none
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	addr, ok := l.Addr().(*net.TCPAddr)
	if !ok {
		return 0, fmt.Errorf("find a free port: %v is no TCP address", l.Addr())
	}
	return addr.Port, l.Close()
}
