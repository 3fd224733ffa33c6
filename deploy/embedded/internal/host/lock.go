package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// ErrLocked says that another living process holds a lock.
var ErrLocked = errors.New("in use by another process")

// Lock is an advisory lock on a file. The kernel drops it with the process that
// holds it, however that ends, so there is never a stale one.
type Lock struct{ f *os.File }

// TryLock takes the lock or returns [ErrLocked] at once. The file is created
// and never removed: removing it would let two processes hold two locks of the
// same name.
func TryLock(path string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600) // close-on-exec: children must not keep the lock alive
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		closeErr := f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("%s: %w", path, ErrLocked), closeErr)
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), closeErr)
	}
	return &Lock{f: f}, nil
}

// WaitLock takes the lock, however long its holder keeps it. waiting is called
// once when there is something to wait for. When ctx ends first, the error is
// [ErrLocked] as well as that of ctx.
func WaitLock(ctx context.Context, path string, waiting func()) (*Lock, error) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; {
		l, err := TryLock(path)
		if err == nil || !errors.Is(err, ErrLocked) {
			return l, err
		}
		if !told {
			waiting()
			told = true
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w (%w)", err, ctx.Err())
		case <-tick.C:
		}
	}
}

// File is to be inherited by a child that shall hold the lock too: it is then free
// when Unlock was called and the child has ended. The lock's owner alone closes it.
func (l *Lock) File() *os.File { return l.f }

// Unlock gives the lock up. Nil is accepted, and so is a second call.
func (l *Lock) Unlock() {
	if l != nil {
		_ = l.f.Close() // nothing was written, so there is nothing to lose
	}
}
