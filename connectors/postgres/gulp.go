package postgres

import (
	"net"
	"net/netip"
	"syscall"
	"time"
)

// A walsender sends one small packet for each message while its peer's receive window is open, and that costs it more
// than decoding. While the window is closed, the kernel gathers what it sends and later moves it in large pieces. So a
// busy stream is read in gulps: everything there is, then a pause in which a window that is small on purpose fills.
// On loopback this more than doubles what one walsender gives of one-row transactions. A stream that only trickles is
// read as it comes.
const (
	// gulpWindow is SO_RCVBUF on loopback.
	gulpWindow = 16 << 10
	// gulpSegments is how many segments of the largest size gulpWindow has room for, at least.
	gulpSegments = 2
	// gulpStart is how large a read must be to say that the stream flows, gulpStop how small one after a pause must be
	// to say that it has ceased to.
	gulpStart, gulpStop = 8 << 10, 2 << 10
	// gulpShort reads within gulpSpan say that it flows in small pieces.
	gulpShort, gulpSpan = 16, 2400 * time.Microsecond
	// gulpLongest bounds the pause, in shortest pauses.
	gulpLongest = 4
)

// pace decides between two reads whether to pause. It is pure. The zero pace never pauses.
type pace struct {
	least time.Duration // shortest pause
	pause time.Duration // now

	flows bool
	got   int       // bytes since the last wait
	short int       // small reads since mark
	mark  time.Time // when the last gulpShort of them had come
}

// took notes bytes that came.
func (p *pace) took(n int) { p.got += n }

// next is asked when the socket is empty: how long to pause before it is looked at again; 0 for waiting as usual.
func (p *pace) next(now time.Time) time.Duration {
	got := p.got
	p.got = 0
	if p.least == 0 || got == 0 {
		return 0
	}
	switch {
	case got >= gulpStart:
		p.flows = true
	case p.flows:
		p.flows, p.short = got >= gulpStop, 0
	default:
		if p.short++; p.short == gulpShort {
			p.flows = now.Sub(p.mark) < gulpSpan
			p.mark, p.short = now, 0
		}
	}
	if !p.flows {
		return 0
	}
	return max(p.pause, p.least)
}

// woke notes what the first read after a pause brought. Less than the window says that it never closed, and that a
// longer pause would have been better.
func (p *pace) woke(n int) {
	p.took(n)
	if n < gulpWindow {
		p.pause = min(2*max(p.pause, p.least), gulpLongest*p.least)
		return
	}
	p.pause = max(p.pause*7/8, p.least)
}

// smallWindow makes the receive window of a connection small before it is opened, as its scale is agreed when it opens.
// Only on this machine: over a distance, a window bounds the throughput to its size for each round trip.
func smallWindow(_, address string, c syscall.RawConn) error {
	if !local(address) {
		return nil
	}
	return setReceiveBuffer(c, gulpWindow)
}

// local reports whether an address is of this machine. Names have been resolved by then.
func local(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false // a Unix socket has no such window
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
