package postgres

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestConditionStaysWithinItsParentheses(t *testing.T) {
	for _, ok := range []string{
		"price > 1", "(a) AND (b OR (c))", "title = 'a) b'", `title = E'it\'s )'`, `"odd ) name" = 1`, "a -- )\n = 1", "a /* ) /* ( */ ) */ = 1",
		"a = $$ ) $$", "a = $t$ ) $$ ) $t$", "a = '''' ", "price1$ = 2", `a LIKE 'x\_y'`, "",
	} {
		require.NoError(t, checkCondition(ok), ok)
	}
	for _, bad := range []string{
		"true) OR (true", "true; DROP TABLE t", "(a", "a)", "a = 'x", `"a`, "/* /* */", "$$ a", "a\x00", `date'2\' ) OR (true) --'`, `a = '\' ) OR (true) --'`,
	} {
		require.Error(t, checkCondition(bad), bad)
	}
}

func FuzzCheckCondition(f *testing.F) {
	for _, s := range []string{"", "(a) AND 'b'", "$t$ ) $t$", "/*/**/*/", `E'\''`, "a$1$"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkCondition(s) == nil && !strings.ContainsAny(s, `'"$-/`) {
			require.Equal(t, strings.Count(s, "("), strings.Count(s, ")"))
			require.NotContains(t, s, ";")
		}
	})
}
