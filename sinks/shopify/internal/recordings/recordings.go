// Package recordings gives tests the recorded exchanges of real shops, to hold against them what this project says of
// costs and answers. They lie beside the project: a stranger's clone has none.
package recordings

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Exchange is one request and the shop's answer to it.
type Exchange struct {
	// File holds what was recorded of one shop in one go; Step says where in it.
	File, Step string
	// APIVersion is the one that was asked, such as 2026-10. Empty where the recorder did not keep it.
	APIVersion string
	Query      string
	Variables  map[string]any
	// Response is the whole body. It may be something else than an object, which is no answer of the API.
	Response json.RawMessage
}

// maxLine is more than the longest exchange, in bytes.
const maxLine = 64 << 20

// Read returns the exchanges in the order in which they were recorded. SHELFWIRE_RECORDINGS names their file;
// without it, it is looked for from a package three folders below the project's. Where it is absent the test is
// skipped, and with CI=true it fails.
func Read(t *testing.T) []Exchange {
	t.Helper()
	path := os.Getenv("SHELFWIRE_RECORDINGS") //nolint:forbidigo // only tests come here, and nobody else could tell them
	if path == "" {
		path = filepath.Join("..", "..", "..", "..", "shared", "shopify", "recordings.jsonl.gz")
	}
	f, err := os.Open(path)
	if err != nil {
		if os.Getenv("CI") == "true" { //nolint:forbidigo // as above
			t.Fatalf("recordings are needed in CI: %v", err)
		}
		t.Skipf("recorded exchanges are not here: %v", err)
	}
	defer func() { require.NoError(t, f.Close()) }()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	lines := bufio.NewScanner(z)
	lines.Buffer(nil, maxLine)
	var out []Exchange
	for lines.Scan() {
		var e Exchange
		require.NoError(t, json.Unmarshal(lines.Bytes(), &e))
		out = append(out, e)
	}
	require.NoError(t, lines.Err())
	return out
}
