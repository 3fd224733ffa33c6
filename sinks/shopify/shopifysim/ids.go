package shopifysim

import (
	"fmt"
	"hash/fnv"
	"regexp"
	"strconv"
	"strings"
)

// gid renders a global id.
func gid(kind string, id int64) string {
	return "gid://shopify/" + kind + "/" + strconv.FormatInt(id, 10)
}

// validGID is what Shopify accepts as an ID before it looks at the type.
var validGID = regexp.MustCompile(`^gid://[A-Za-z][\w-]*/\w+/.+$`)

// parseGID splits a global id into its type and number; ok is false where the number is none. A query after the
// number (inventory levels carry one) is ignored.
func parseGID(s string) (kind string, id int64, ok bool) {
	rest, found := strings.CutPrefix(s, "gid://shopify/")
	if !found {
		return "", 0, false
	}
	kind, tail, _ := strings.Cut(rest, "/")
	tail, _, _ = strings.Cut(tail, "?")
	id, err := strconv.ParseInt(tail, 10, 64)
	return kind, id, err == nil
}

// idOf returns the number of a global id of one type, or 0.
func idOf(kind string, v any) int64 {
	s, _ := v.(string)
	k, id, ok := parseGID(s)
	if !ok || k != kind {
		return 0
	}
	return id
}

// sequence hands out ids of one shop. They start at a number that depends on the shop's domain, so that an id used
// in the wrong shop is not found there, and increase by a step, as Shopify's do.
type sequence struct{ next int64 }

// idStep keeps neighbouring ids apart, as at Shopify, so that code that counts on consecutive ids breaks in tests.
const idStep = 32768

func newSequence(domain string) *sequence {
	h := fnv.New32a()
	_, _ = h.Write([]byte(domain)) // never fails
	return &sequence{next: 7_000_000_000_000 + int64(h.Sum32()%500_000)*4_000_037}
}

func (s *sequence) take() int64 {
	s.next += idStep
	return s.next
}

// levelGID renders the id of an inventory level, which names its item in a query.
func levelGID(level, item int64) string {
	return fmt.Sprintf("gid://shopify/InventoryLevel/%d?inventory_item_id=%d", level, item)
}
