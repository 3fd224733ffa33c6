package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// Scratch is a directory that lasts as long as the process that made it, and
// that the account of [Unprivileged] can enter.
type Scratch struct {
	// Path of the directory.
	Path string

	lock *Lock
}

// NewScratch makes one below dir, and removes those there whose processes have
// ended without doing so, for instance because they were killed.
func NewScratch(ctx context.Context, dir string) (*Scratch, error) {
	if err := MkdirAll(dir); err != nil {
		return nil, err
	}
	// Between the making of a directory and its lock nobody may sweep.
	guard, err := WaitLock(ctx, filepath.Join(dir, "lock"), func() {})
	if err != nil {
		return nil, err
	}
	defer guard.Unlock()
	if err := sweep(dir); err != nil {
		return nil, err
	}
	path, err := os.MkdirTemp(dir, "run-")
	if err != nil {
		return nil, err
	}
	lock, err := TryLock(filepath.Join(path, "lock"))
	if err != nil {
		return nil, err
	}
	return &Scratch{Path: path, lock: lock}, os.Chmod(path, 0o755)
}

func sweep(dir string) error {
	paths, err := filepath.Glob(filepath.Join(dir, "run-*"))
	if err != nil {
		return err
	}
	for _, path := range paths {
		lock, err := TryLock(filepath.Join(path, "lock"))
		if errors.Is(err, ErrLocked) || errors.Is(err, os.ErrNotExist) {
			continue // its process lives, or has just removed it
		}
		if err != nil {
			return err
		}
		err = os.RemoveAll(path)
		lock.Unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// Remove removes the directory with all that is in it. Stop what works there first.
func (s *Scratch) Remove() error {
	err := os.RemoveAll(s.Path)
	s.lock.Unlock()
	return err
}
