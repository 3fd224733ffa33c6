//go:build !linux

package postgres

import (
	"net"
	"syscall"
	"time"
)

// gulp does nothing on this system: the stream is read as it comes.
type gulp struct{ pace pace }

func newGulp(net.Conn, time.Duration) *gulp { return &gulp{} }

func (*gulp) read([]byte) (int, error) { return 0, nil }

func setReceiveBuffer(syscall.RawConn, int) error { return nil }
