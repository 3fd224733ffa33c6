package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Installation is a directory that is filled once and then only read.
type Installation struct {
	// Dir that shall exist afterwards, complete.
	Dir string
	// Fill puts the content into an empty temporary sibling of Dir.
	Fill func(ctx context.Context, tmp string) error
	// Waiting is called when another process is installing the same.
	Waiting func()
}

// Install does nothing when i.Dir is there. Otherwise it fills a temporary
// sibling and renames it, so that a killed process leaves nothing that looks
// complete; of several processes one does the work and the others wait.
func Install(ctx context.Context, i Installation) error {
	if err := MkdirAll(filepath.Dir(i.Dir)); err != nil {
		return err
	}
	lock, err := WaitLock(ctx, i.Dir+".lock", i.Waiting)
	if err != nil {
		return err
	}
	defer lock.Unlock()
	if _, err := os.Stat(i.Dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// One name, not a random one: under the lock it is ours alone, and so what a
	// killed process left there is cleared by the next.
	tmp := i.Dir + ".partial"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	if err := MkdirAll(tmp); err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := i.Fill(ctx, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, i.Dir); err != nil {
		return fmt.Errorf("install %s: %w", i.Dir, err)
	}
	return nil
}
