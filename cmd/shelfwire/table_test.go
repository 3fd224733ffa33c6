package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestATableFitsTheTerminal(t *testing.T) {
	tab := &table{head: []string{"BATCH", "NAME", "ERRORS"}, elastic: []string{"NAME", "ERRORS"}}
	id := strings.Repeat("b", 30)
	tab.add(id, "Spring import", strings.Repeat("ü", 200))
	tab.add("short")
	for _, columns := range []int{60, 80, 120, 400} {
		rows := tab.fit(columns)
		require.Equal(t, id, rows[0][0], "what is copied stays whole")
		require.LessOrEqual(t, len([]rune(strings.Join(rows[0], "  "))), columns)
		require.Equal(t, "Spring import", rows[0][1], "the widest is cut first")
	}
	require.Equal(t, strings.Repeat("ü", 200), tab.fit(400)[0][2])
	require.Equal(t, []string{id, "Spring …", strings.Repeat("ü", 7) + "…"}, tab.fit(10)[0], "there is an end to cutting")

	var out bytes.Buffer
	require.NoError(t, (&table{head: []string{"HOLD"}, empty: "nothing is held"}).write(&out))
	require.Equal(t, "nothing is held\n", out.String())
}
