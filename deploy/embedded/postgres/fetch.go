package postgres

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"

	"github.com/xi2/xz"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// mavenGroup of the binaries.
const mavenGroup = "io.zonky.test.postgres"

// install fetches the pinned version, whose sha256 in hexadecimal must be sum,
// and unpacks it to dst. Processes that need it at the same time wait for the
// first one.
func install(ctx context.Context, c Config, dst, sum string) error {
	return host.Install(ctx, host.Installation{
		Dir:     dst,
		Waiting: func() { c.progress("Waiting for another process that fetches PostgreSQL %s", pinned) },
		Fill: func(ctx context.Context, tmp string) error {
			jar, err := fetch(ctx, c, sum)
			if err != nil {
				return err
			}
			c.progress("Unpacking PostgreSQL %s to %s", pinned, dst)
			return unpack(jar, tmp)
		},
	})
}

// fetch returns the jar with that sum. A source that gives something else is an
// error, never a reason to ask the next one quietly.
func fetch(ctx context.Context, c Config, sum string) ([]byte, error) {
	name := artifact()
	if sum == "" {
		return nil, fmt.Errorf("%w: there is no %s to fetch: install a PostgreSQL server %d to %d", ErrNoBinaries, name, oldestMajor, newestMajor)
	}
	jar, from, err := fetchUnchecked(ctx, c, name)
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(jar); hex.EncodeToString(got[:]) != sum {
		return nil, fmt.Errorf("%s %s from %s is not the pinned one: its sha256 is %x, expected %s", name, pinned, from, got, sum)
	}
	return jar, nil
}

func fetchUnchecked(ctx context.Context, c Config, name string) (jar []byte, from string, err error) {
	if c.Jar != "" {
		jar, err := os.ReadFile(c.Jar)
		return jar, c.Jar, err
	}
	rel := path.Join(strings.ReplaceAll(mavenGroup, ".", "/"), name, pinned, name+"-"+pinned+".jar")
	if home, err := os.UserHomeDir(); err == nil {
		file := filepath.Join(home, ".m2", "repository", filepath.FromSlash(rel))
		if jar, err := os.ReadFile(file); err == nil {
			return jar, file, nil
		}
	}
	var errs []error
	if mvn, err := exec.LookPath("mvn"); err == nil {
		c.progress("Fetching PostgreSQL %s (15 MB) with mvn, once", pinned)
		jar, err := fetchMaven(ctx, mvn, name, rel)
		if err == nil {
			return jar, "mvn", nil
		}
		errs = append(errs, err)
	}
	if c.RepositoryURL != "" {
		address := strings.TrimSuffix(c.RepositoryURL, "/") + "/" + rel
		c.progress("Fetching PostgreSQL %s (15 MB) from %s, once", pinned, c.RepositoryURL)
		jar, err := fetchHTTP(ctx, address)
		if err == nil {
			return jar, address, nil
		}
		errs = append(errs, err)
	}
	return nil, "", errors.Join(append([]error{fmt.Errorf(
		"%w: install a PostgreSQL server %d to %d (Debian: apt-get install postgresql) or Maven (Debian: apt-get install maven), or name the address of a running server, a directory of binaries, the jar of %s %s or a repository that has it",
		ErrNoBinaries, oldestMajor, newestMajor, name, pinned)}, errs...)...)
}

// fetchMaven uses a local repository of its own, which is thrown away: what the
// user's has is not touched.
func fetchMaven(ctx context.Context, mvn, name, rel string) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "shelfwire-mvn-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	cmd := exec.CommandContext(ctx, mvn, "-q", "-B", "-Dmaven.repo.local="+tmp,
		"dependency:get", "-Dtransitive=false", "-Dartifact="+mavenGroup+":"+name+":"+pinned)
	cmd.Dir = tmp // not the caller's, which may have a pom.xml
	if out, err := child.Output(cmd); err != nil {
		return nil, fmt.Errorf("mvn: %w: %.500s", err, bytes.TrimSpace(out))
	}
	return os.ReadFile(filepath.Join(tmp, filepath.FromSlash(rel)))
}

// fetchHTTP asks a repository directly.
func fetchHTTP(ctx context.Context, address string) ([]byte, error) {
	tmp, err := os.MkdirTemp("", "shelfwire-jar-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	file := filepath.Join(tmp, "binaries.jar")
	if err := host.Download(ctx, address, file, func(int64) {}); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}

// unpack writes the jar's one archive into dir.
func unpack(jar []byte, dir string) error {
	zr, err := zip.NewReader(bytes.NewReader(jar), int64(len(jar)))
	if err != nil {
		return fmt.Errorf("open the jar: %w", err)
	}
	for _, f := range zr.File {
		if !strings.HasSuffix(f.Name, ".txz") {
			continue
		}
		r, err := f.Open()
		if err != nil {
			return err
		}
		defer r.Close()
		x, err := xz.NewReader(r, 0)
		if err != nil {
			return fmt.Errorf("open %s: %w", f.Name, err)
		}
		if err := untar(tar.NewReader(x), dir); err != nil {
			return fmt.Errorf("unpack %s: %w", f.Name, err)
		}
		return nil
	}
	return errors.New("no .txz in the jar")
}

// untar writes below dir and nowhere else: neither names nor links leave it.
func untar(tr *tar.Reader, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Clean(h.Name)
		if name == "." {
			continue
		}
		if err := makeDir(root, filepath.Dir(name)); err != nil {
			return err
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = makeDir(root, name)
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, name)
		case tar.TypeReg:
			err = writeFile(root, name, h.FileInfo().Mode(), tr)
		}
		if err != nil {
			return err
		}
	}
}

// makeDir makes a directory that everyone can enter, whatever the umask: the
// server may run under another account than the one that unpacks.
func makeDir(root *os.Root, name string) error {
	if _, err := root.Stat(name); err == nil {
		return nil
	}
	if err := makeDir(root, filepath.Dir(name)); err != nil {
		return err
	}
	return errors.Join(root.Mkdir(name, 0o755), root.Chmod(name, 0o755))
}

// writeFile keeps the execute bits and makes everything readable, as above.
func writeFile(root *os.Root, name string, mode os.FileMode, r io.Reader) error {
	perm := mode.Perm()&0o755 | 0o444
	w, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, perm)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Chmod(perm), w.Close())
}
