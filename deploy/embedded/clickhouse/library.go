package clickhouse

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/npm"
)

// The library is published to npm: libchdb.so of ClickHouse 26.7.2.1, 178 MB
// packed, 566 MB unpacked. For arm64 no package was found.
var pinned = npm.Package{
	Name:      "@chdb/lib-linux-x64-gnu",
	Version:   "26.7.3-stable.1",
	Integrity: "sha512-XP97mMqnc5tZpKQywR8N7cLTsHNiTmHr30pC5mzo3jWmukjKn2IBa60c2B/gWUNcuFjOMjWoorQICCqBVj5wpw==",
}

const (
	libFile  = "package/libchdb.so"
	packedMB = 178
)

// ErrNoLibrary says that libchdb was neither found nor could be fetched. The
// message says what to install.
var ErrNoLibrary = errors.New("no ClickHouse engine found, and none could be fetched")

// ownServer is what a person without the engine can do. The name of the variable
// is the demo's: it reaches most who read this.
const ownServer = "use a running ClickHouse (the demo takes its address from SHELFWIRE_CLICKHOUSE_URL)"

// library returns the path of libchdb.so: the one that the user names, or the
// pinned one, which is fetched and checked once and then kept.
func library(ctx context.Context, c Config) (string, error) {
	if c.LibPath != "" {
		lib, err := filepath.Abs(c.LibPath) // the engine has another working directory
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(lib); err != nil {
			return "", fmt.Errorf("no ClickHouse engine: %w", err)
		}
		return lib, nil
	}
	if c.CacheDir == "" {
		base, err := host.BaseDir("shelfwire")
		if err != nil {
			return "", err
		}
		c.CacheDir = base
	}
	if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
		return "", fmt.Errorf("%w: there is no package for %s/%s: %s", ErrNoLibrary, runtime.GOOS, runtime.GOARCH, ownServer)
	}
	cache, err := filepath.Abs(c.CacheDir) // the engine has another working directory
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "libchdb-"+pinned.Version)
	lib := filepath.Join(dir, "libchdb.so")
	if _, err := os.Stat(lib); err == nil {
		return lib, nil
	}
	return lib, install(ctx, c, dir, pinned)
}

// install puts the library of the package into dir. Processes that need it at
// the same time wait for the first one.
func install(ctx context.Context, c Config, dir string, p npm.Package) error {
	return host.Install(ctx, host.Installation{
		Dir:     dir,
		Waiting: func() { c.progress("Waiting for another process that fetches the ClickHouse engine") },
		Fill:    func(ctx context.Context, tmp string) error { return fill(ctx, c, tmp, p) },
	})
}

// fill puts libchdb.so, and nothing else, into dir.
func fill(ctx context.Context, c Config, dir string, p npm.Package) error {
	// Beside what is to stay, not in /tmp, which may be small and in memory.
	download, err := os.MkdirTemp(dir, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(download)
	tarball, err := p.Fetch(ctx, npm.Source{
		Tarball: c.Tarball, RegistryURL: c.RegistryURL,
		Progress: func(from string, done int64) {
			c.progress("Fetching the ClickHouse engine from %s, once: %d of %d MB", from, min(done/1_000_000, packedMB), packedMB)
		},
	}, download)
	if errors.Is(err, npm.ErrUnavailable) {
		return fmt.Errorf("%w: install npm (Debian: apt-get install npm), which fetches it, or %s: %w", ErrNoLibrary, ownServer, err)
	}
	if err != nil {
		return err
	}
	c.progress("Unpacking the ClickHouse engine (566 MB)")
	return extract(tarball, filepath.Join(dir, "libchdb.so"))
}

// extract writes the library to dst.
func extract(tarball, dst string) error {
	f, err := os.Open(tarball)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return fmt.Errorf("open %s: %w", tarball, err)
	}
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err != nil {
			return fmt.Errorf("find %s in %s: %w", libFile, tarball, err)
		}
		if h.Name != libFile {
			continue
		}
		w, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		_, err = io.Copy(w, tr)
		// Synced, because a machine that goes down now must not leave a file that
		// looks complete: it is not checked again.
		return errors.Join(err, w.Sync(), w.Close())
	}
}
