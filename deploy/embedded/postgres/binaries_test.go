package postgres

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// jar is one like those of Maven, with programs that only know their version.
func jar(t *testing.T) (content []byte, sum string) {
	t.Helper()
	archive, err := os.ReadFile("testdata/binaries.txz")
	require.NoError(t, err)
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	for name, content := range map[string][]byte{"META-INF/MANIFEST.MF": nil, "postgres.txz": archive} {
		w, err := zw.Create(name)
		require.NoError(t, err)
		_, err = w.Write(content)
		require.NoError(t, err)
	}
	require.NoError(t, zw.Close())
	digest := sha256.Sum256(b.Bytes())
	return b.Bytes(), hex.EncodeToString(digest[:])
}

// of is the pinned release with another checksum for this machine.
func of(sum string) release {
	return release{releases[pinnedMajor].version, map[string]string{artifact(): sum}}
}

// alone makes a machine without package tools and without a local repository.
func alone(t *testing.T) {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	t.Setenv("PATH", "/nonexistent")
}

func repository(t *testing.T, content []byte) (url string, asked *atomic.Int32) {
	t.Helper()
	asked = new(atomic.Int32)
	version := releases[pinnedMajor].version
	path := "/base/io/zonky/test/postgres/" + artifact() + "/" + version + "/" + artifact() + "-" + version + ".jar"
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path != path {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(content)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/base/", asked
}

func TestInstallFromARepository(t *testing.T) {
	alone(t)
	content, sum := jar(t)
	url, asked := repository(t, content)
	dst := filepath.Join(t.TempDir(), "new", "pg")
	require.NoError(t, installMaven(t.Context(), Config{RepositoryURL: url}, of(sum), dst))
	major, err := probe(t.Context(), filepath.Join(dst, "bin"))
	require.NoError(t, err)
	require.Equal(t, 17, major)
	link, err := os.Readlink(filepath.Join(dst, "bin", "postmaster"))
	require.NoError(t, err)
	require.Equal(t, "postgres", link)
	for name, mode := range map[string]os.FileMode{"": 0o755, "bin": 0o755, "bin/initdb": 0o744, "share/file": 0o644, "share/empty": 0o755} {
		fi, err := os.Stat(filepath.Join(dst, name))
		require.NoError(t, err)
		require.Equal(t, mode, fi.Mode().Perm()&0o755, name)
	}
	require.NoError(t, installMaven(t.Context(), Config{RepositoryURL: url}, of(sum), dst))
	require.EqualValues(t, 1, asked.Load(), "the second time it is there")
}

// A demo and a test run that begin together on a new machine share one download.
func TestConcurrentInstallsFetchOnce(t *testing.T) {
	alone(t)
	content, sum := jar(t)
	url, asked := repository(t, content)
	dst := filepath.Join(t.TempDir(), "pg")
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() { errs[i] = installMaven(t.Context(), Config{RepositoryURL: url}, of(sum), dst) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	require.EqualValues(t, 1, asked.Load())
}

func TestAnotherChecksumIsRefused(t *testing.T) {
	alone(t)
	content, sum := jar(t)
	content[len(content)-1] ^= 1
	url, _ := repository(t, content)
	file := filepath.Join(t.TempDir(), "wrong.jar")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	for source, c := range map[string]Config{url: {RepositoryURL: url}, file: {Jar: file}} {
		cache := t.TempDir()
		err := installMaven(t.Context(), c, of(sum), filepath.Join(cache, "pg"))
		require.ErrorContains(t, err, "is not the pinned one")
		require.ErrorContains(t, err, source)
		left, err := filepath.Glob(filepath.Join(cache, "pg*"))
		require.NoError(t, err)
		require.Equal(t, []string{filepath.Join(cache, "pg.lock")}, left, "nothing may look like an installation")
	}
}

// What a killed process had unpacked by half is not mistaken for a whole.
func TestInstallBeginsAnewAfterAKill(t *testing.T) {
	content, sum := jar(t)
	file := filepath.Join(t.TempDir(), "binaries.jar")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	dst := filepath.Join(t.TempDir(), "pg")
	require.NoError(t, os.MkdirAll(filepath.Join(dst+".partial", "bin", "postgres"), 0o700))
	require.NoError(t, installMaven(t.Context(), Config{Jar: file}, of(sum), dst))
	_, err := probe(t.Context(), filepath.Join(dst, "bin"))
	require.NoError(t, err)
	require.NoDirExists(t, dst+".partial")
}

func TestUnpackStaysInItsDirectory(t *testing.T) {
	for name, entries := range map[string][]tar.Header{
		"name": {{Name: "../escaped", Typeflag: tar.TypeReg, Mode: 0o644}},
		"link": {{Name: "out", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "out/escaped", Typeflag: tar.TypeReg, Mode: 0o644}},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			tw := tar.NewWriter(&b)
			for _, h := range entries {
				require.NoError(t, tw.WriteHeader(&h))
			}
			require.NoError(t, tw.Close())
			parent := t.TempDir()
			dir := filepath.Join(parent, "dir")
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.Error(t, untar(tar.NewReader(&b), ".", dir))
			require.NoFileExists(t, filepath.Join(parent, "escaped"))
		})
	}
}

func TestNothingToBeHadSaysWhatToInstall(t *testing.T) {
	alone(t)
	_, err := resolve(t.Context(), Config{Pinned: true, CacheDir: t.TempDir()}, 0)
	require.ErrorIs(t, err, ErrNoBinaries)
	for _, hint := range []string{"apt-get install postgresql", "apt-get install maven", "apt-get install npm", "SHELFWIRE_POSTGRES_URL", releases[pinnedMajor].version} {
		require.ErrorContains(t, err, hint)
	}
}

func TestResolveTakesWhatTheUserNames(t *testing.T) {
	bin := fakeBinaries(t)
	got, err := resolve(t.Context(), Config{BinDir: bin}, 17)
	require.NoError(t, err)
	require.Equal(t, bin, got)
	_, err = resolve(t.Context(), Config{BinDir: bin}, 15)
	require.ErrorContains(t, err, "made by PostgreSQL 15")
	_, err = resolve(t.Context(), Config{BinDir: t.TempDir()}, 0)
	require.ErrorContains(t, err, "no PostgreSQL in", "there is no quiet fallback")
}

// Data of another version is neither deleted nor given to a server that cannot
// read it.
func TestResolveFitsTheData(t *testing.T) {
	cache := t.TempDir()
	dir := mavenDir(cache, releases[17])
	require.NoError(t, os.Rename(filepath.Dir(fakeBinaries(t)), dir))
	got, err := resolve(t.Context(), Config{CacheDir: cache, Pinned: true}, 17)
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "bin"), got)
	_, err = resolve(t.Context(), Config{CacheDir: cache, Pinned: true}, 16)
	require.ErrorIs(t, err, ErrNoBinaries)
	require.ErrorContains(t, err, "PostgreSQL 16")
}

// A version that is asked for is that one, and nothing else will do.
func TestResolveGivesTheVersionAskedFor(t *testing.T) {
	alone(t)
	cache := t.TempDir()
	require.NoError(t, os.Rename(filepath.Dir(fakeBinaries(t)), mavenDir(cache, releases[17])))
	_, err := resolve(t.Context(), Config{CacheDir: cache, Pinned: true}, 18)
	require.ErrorIs(t, err, ErrNoBinaries, "not the 17 that is there")
	require.ErrorContains(t, err, releases[18].version)
	require.ErrorContains(t, err, "apt-get install maven")
	for major, r := range releases {
		require.Equal(t, strconv.Itoa(major), r.version[:2])
		for name, sum := range r.sums {
			require.Len(t, sum, 64, "%s %s", name, r.version)
		}
	}
}

func fakeBinaries(t *testing.T) (bin string) {
	t.Helper()
	content, sum := jar(t)
	file := filepath.Join(t.TempDir(), "binaries.jar")
	require.NoError(t, os.WriteFile(file, content, 0o600))
	dst := filepath.Join(t.TempDir(), "pg")
	require.NoError(t, installMaven(context.Background(), Config{Jar: file}, of(sum), dst))
	return filepath.Join(dst, "bin")
}
