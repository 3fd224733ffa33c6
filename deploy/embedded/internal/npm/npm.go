// Package npm fetches one pinned package from a registry of npm packages, to
// have what is in it and not to install it.
package npm

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// ErrUnavailable says that no source had the package. What is joined to it says why.
var ErrUnavailable = errors.New("package not available")

// Package is one version of one package.
type Package struct {
	Name    string
	Version string
	// Integrity is the registry's checksum of the packed package: sha512-<base64>.
	Integrity string
}

func (p Package) String() string { return p.Name + "@" + p.Version }

// Source says where a package may come from. The first that is there is asked,
// and the next one only when it has nothing.
type Source struct {
	// Tarball is the packed package itself. Nothing else is tried then.
	Tarball string
	// RegistryURL is the base of a registry, asked after the command npm. Empty: none.
	RegistryURL string
	// Progress is told what is being asked, and the bytes so far every 2 s.
	Progress func(from string, done int64)
}

// Fetch returns the path of the packed package with the checksum of p. What is
// fetched is put into dir, which the caller removes. A source that gives
// something else is an error, never a reason to ask the next one quietly.
func (p Package) Fetch(ctx context.Context, s Source, dir string) (tarball string, err error) {
	if s.Tarball != "" {
		return s.Tarball, p.check(s.Tarball, s.Tarball)
	}
	var errs []error
	if npm, err := exec.LookPath("npm"); err == nil {
		tarball, err := p.pack(ctx, npm, dir, func(done int64) { s.Progress("npm", done) })
		if err == nil {
			return tarball, p.check(tarball, "npm")
		}
		errs = append(errs, err)
	}
	if s.RegistryURL != "" {
		base := path.Base(p.Name) + "-" + p.Version + ".tgz"
		address := strings.TrimSuffix(s.RegistryURL, "/") + "/" + p.Name + "/-/" + base
		tarball := filepath.Join(dir, base)
		s.Progress(s.RegistryURL, 0)
		err := host.Download(ctx, address, tarball, func(done int64) { s.Progress(s.RegistryURL, done) })
		if err == nil {
			return tarball, p.check(tarball, address)
		}
		errs = append(errs, err)
	}
	return "", errors.Join(append([]error{fmt.Errorf("%w: %s", ErrUnavailable, p)}, errs...)...)
}

// pack lets npm fetch the package, because it knows the user's registry, proxy
// and credentials. Its cache goes to dir too: a second copy would stay in the
// user's for nothing.
func (p Package) pack(ctx context.Context, npm, dir string, progress func(done int64)) (string, error) {
	progress(0)
	cmd := exec.CommandContext(ctx, npm, "pack", p.String(),
		"--ignore-scripts", "--loglevel", "error", "--pack-destination", dir, "--cache", filepath.Join(dir, "cache"))
	cmd.Dir = dir
	cmd.WaitDelay = time.Second // npm's own children must not keep us waiting after a cancel
	var out []byte
	ended := make(chan error, 1)
	go func() {
		var err error
		out, err = child.Output(cmd)
		ended <- err
	}()
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			if err != nil {
				return "", fmt.Errorf("npm pack: %w: %.500s", err, bytes.TrimSpace(out))
			}
			found, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
			if err != nil || len(found) != 1 {
				return "", errors.Join(fmt.Errorf("npm pack left %d packages", len(found)), err)
			}
			return found[0], nil
		case <-tick.C: // npm says nothing: look at what it writes
			progress(largestFile(dir))
		}
	}
}

// largestFile below dir, in bytes. What vanishes meanwhile does not count.
func largestFile(dir string) int64 {
	var largest int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if fi, err := d.Info(); err == nil {
				largest = max(largest, fi.Size())
			}
		}
		return nil
	})
	return largest
}

// check compares a packed package with the pinned checksum.
func (p Package) check(tarball, from string) error {
	f, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha512.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read %s: %w", tarball, err)
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(h.Sum(nil)); got != p.Integrity {
		return fmt.Errorf("%s from %s is not the pinned one: its checksum is %s, expected %s", p, from, got, p.Integrity)
	}
	return nil
}
