package shopifysim

import (
	"encoding/base64"
	"encoding/json"
	"slices"
)

// maxPage is the largest page of any connection; a product's own variants may be read 2,048 at once.
const (
	maxPage         = 250
	maxVariantsPage = 2048
)

// page cuts a list by first, last, after, before and reverse, and renders the connection.
func page(a arguments, list []any) (any, error) { return pageUpTo(a, list, maxPage) }

func pageUpTo(a arguments, list []any, limit int64) (any, error) {
	first, hasFirst := a["first"].(int64)
	last, hasLast := a["last"].(int64)
	switch {
	case hasFirst && hasLast:
		return nil, coded("BAD_REQUEST", "providing both first and last is not supported")
	case !hasFirst && !hasLast:
		return nil, coded("BAD_REQUEST", "you must provide one of first or last")
	case first > limit || last > limit:
		return nil, coded("BAD_REQUEST", "first and last may not be greater than 250")
	case first < 0 || last < 0:
		return nil, coded("BAD_REQUEST", "first and last may not be negative")
	}
	if reverse, _ := a["reverse"].(bool); reverse {
		list = slices.Clone(list)
		slices.Reverse(list)
	}
	from, to := 0, len(list)
	if c, ok := a["after"].(string); ok {
		i, there, err := position(c, list)
		if err != nil {
			return nil, err
		}
		if from = i; there {
			from++
		}
	}
	if c, ok := a["before"].(string); ok {
		i, _, err := position(c, list)
		if err != nil {
			return nil, err
		}
		to = i
	}
	to = max(from, to)
	if hasFirst {
		to = min(to, from+int(first))
	} else {
		from = max(from, to-int(last))
	}
	return connection(list[from:to], from > 0, to < len(list)), nil
}

func connection(nodes []any, before, after bool) record {
	edges := make([]any, len(nodes))
	for i, n := range nodes {
		edges[i] = record{"node": n, "cursor": cursor(n)}
	}
	info := record{"hasNextPage": after, "hasPreviousPage": before, "startCursor": nil, "endCursor": nil}
	if len(nodes) > 0 {
		info["startCursor"], info["endCursor"] = cursor(nodes[0]), cursor(nodes[len(nodes)-1])
	}
	return record{"nodes": nodes, "edges": edges, "pageInfo": info}
}

// cursor is opaque to clients: the id of the node that it stands behind.
func cursor(node any) string {
	b, err := json.Marshal(map[string]any{"last_id": numberOf(node), "last_value": textOf(node)})
	if err != nil {
		return ""
	}
	return base64.StdEncoding.EncodeToString(b)
}

// position finds the index of a cursor's node, and whether it is there. One that is gone is where it would be by id.
func position(c string, list []any) (index int, there bool, err error) {
	var at struct {
		LastID    int64  `json:"last_id"`
		LastValue string `json:"last_value"`
	}
	b, err := base64.StdEncoding.DecodeString(c)
	if err != nil || json.Unmarshal(b, &at) != nil {
		return 0, false, coded("BAD_REQUEST", "Invalid cursor for current pagination sort.")
	}
	for i, n := range list {
		if numberOf(n) == at.LastID && textOf(n) == at.LastValue {
			return i, true, nil
		}
	}
	for i, n := range list {
		if numberOf(n) > at.LastID {
			return i, false, nil
		}
	}
	return len(list), false, nil
}

// numberOf returns the id of a node; 0 where it has none.
func numberOf(node any) int64 {
	switch n := node.(type) {
	case *product:
		return n.id
	case *variant:
		return n.id
	case *inventoryItem:
		return n.id
	case *level:
		return n.id
	case *location:
		return n.id
	case *publication:
		return n.id
	case *media:
		return n.id
	case *metafield:
		return n.id
	case *definition:
		return n.id
	case *collection:
		return n.id
	default:
		return 0
	}
}

// textOf tells nodes without an id apart.
func textOf(node any) string {
	switch n := node.(type) {
	case record:
		if p, ok := n["publication"].(*publication); ok {
			return gid("Publication", p.id)
		}
		return ""
	case string:
		return n
	default:
		return ""
	}
}

// nodes turns a typed list into one of any.
func nodes[T any](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}
