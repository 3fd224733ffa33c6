package postgres

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/xi2/xz"
)

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
		if err := untar(tar.NewReader(x), ".", dir); err != nil {
			return fmt.Errorf("unpack %s: %w", f.Name, err)
		}
		return nil
	}
	return errors.New("no .txz in the jar")
}

// untar writes what the archive has below the directory from to dir, and nowhere
// else: neither names nor links leave it.
func untar(tr *tar.Reader, from, dir string) error {
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
		name, err := filepath.Rel(from, filepath.Clean(h.Name))
		if err != nil {
			return err
		}
		if name == "." || (from != "." && !filepath.IsLocal(name)) {
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
