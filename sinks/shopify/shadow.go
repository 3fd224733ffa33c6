package shopify

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/shelfwire/shelfwire/schemas/document"
)

// shadowVersion is raised when the meaning of a shadow changes: older ones are rebuilt from the shop.
const shadowVersion = 1

// Shadow is what was pushed last for one product: the part of work.Known that only this package reads.
type Shadow struct {
	// Same marks the document's text that was compared with this very shadow and left nothing to do. It stands first, where
	// [Same] looks for it, and is not read back: what is changed has no mark.
	Same    string `json:"same,omitempty"`
	Version int    `json:"v"`
	// ID is the product's gid.
	ID     string `json:"id"`
	Status string `json:"status"`
	// Fields are the marks of the owned scalars, by field name ("title", "seo.title").
	Fields map[string]string `json:"fields,omitempty"`
	// Tags, Metafields, Images and Publications are ours; the shop may have more.
	Tags         []string          `json:"tags,omitempty"`
	Metafields   map[string]string `json:"metafields,omitempty"` // mark by "namespace.key"
	Images       []ShadowImage     `json:"images,omitempty"`
	Publications []string          `json:"publications,omitempty"` // names
	Options      []ShadowOption    `json:"options,omitempty"`
	// Variants are by the document's key.
	Variants map[string]*ShadowVariant `json:"variants,omitempty"`
	// Released names the lists ("tags", "images", "publications") that the document has stopped owning. What was put
	// there before stays on record, so that it can be removed when they are owned again; until then the shop's own
	// state of them is not known.
	Released map[string]bool `json:"released,omitempty"`
	// Former is what requests without an answer may have added in the shop, or may yet. It is dropped when none of them
	// is on its way any more, because what a merchant adds later under the same name is the merchant's.
	Former additions `json:"former,omitempty"`
	// Doubt says that the shop contradicted this shadow: read it before the next write.
	Doubt bool `json:"doubt,omitzero"`

	// foreign counts variants of the product that are not ours. It is known right after a read only.
	foreign int
}

// ShadowOption is an option as the shop has it. Ids are empty where no answer has told them.
type ShadowOption struct {
	ID     string        `json:"id,omitempty"`
	Name   string        `json:"name"`
	Values []ShadowValue `json:"values"`
}

// ShadowValue is one value of an option.
type ShadowValue struct {
	ID   string `json:"id,omitempty"`
	Name string `json:"name"`
}

// ShadowVariant is one variant as it was pushed last.
type ShadowVariant struct {
	ID         string                 `json:"id"`
	Item       string                 `json:"item"` // gid of the inventory item
	Options    []string               `json:"options"`
	Fields     map[string]string      `json:"fields,omitempty"`
	Metafields map[string]string      `json:"metafields,omitempty"`
	Stock      map[string]ShadowLevel `json:"stock,omitempty"` // by location name
}

// ShadowLevel is the quantity that the shop was left with.
type ShadowLevel struct {
	Quantity int `json:"q"`
	// Name is the quantity's name where it is not "available".
	Name string `json:"name,omitempty"`
	// Unknown says that the shop's own quantity has not been seen: the next write cannot compare.
	Unknown bool `json:"unknown,omitzero"`
}

// ShadowImage is an image of ours.
type ShadowImage struct {
	URL string `json:"url"`
	Alt string `json:"alt,omitempty"`
	ID  string `json:"id,omitempty"` // gid of the media; empty until an answer has told it
}

func newShadow(id string) *Shadow {
	return &Shadow{
		Version: shadowVersion, ID: id,
		Fields: map[string]string{}, Metafields: map[string]string{}, Variants: map[string]*ShadowVariant{}, Released: map[string]bool{},
		Former: additions{},
	}
}

// noShadow replaces the shadow of a product that the shop does not have any more.
const noShadow = "{}"

// maybe notes that a request with these additions may have reached the shop, or may yet.
func (s *Shadow) maybe(adds additions) {
	s.Doubt = true
	s.Former = additions(cloneMap(s.Former)).merge(adds)
}

// parseShadow returns nil where there is none, or none of this version. A shadow without an id is that of a creation
// without an answer.
func parseShadow(raw json.RawMessage) *Shadow {
	if len(raw) == 0 {
		return nil
	}
	s := newShadow("")
	if err := jsonv2.Unmarshal(raw, s, jsontext.AllowInvalidUTF8(true)); err != nil || s.Version != shadowVersion || s.ID == "" && !s.Doubt {
		return nil
	}
	s.Same = ""
	for key, v := range s.Variants {
		if v == nil {
			delete(s.Variants, key)
		}
	}
	return s
}

// encode returns the shadow for the state; nil for no shadow.
func (s *Shadow) encode() (json.RawMessage, error) {
	if s == nil {
		return nil, nil
	}
	b, err := jsonv2.Marshal(s, jsonv2.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return nil, fmt.Errorf("encode the shadow of %s: %w", s.ID, err)
	}
	return b, nil
}

// clone copies a shadow, so that a plan can be tried on it.
func (s *Shadow) clone() *Shadow {
	if s == nil {
		return nil
	}
	c := *s
	c.Fields = cloneMap(s.Fields)
	c.Metafields = cloneMap(s.Metafields)
	c.Tags = slices.Clone(s.Tags)
	c.Images = slices.Clone(s.Images)
	c.Publications = slices.Clone(s.Publications)
	c.Options = cloneOptions(s.Options)
	c.Released = cloneMap(s.Released)
	c.Former = cloneMap(s.Former)
	c.Variants = make(map[string]*ShadowVariant, len(s.Variants))
	for key, v := range s.Variants {
		c.Variants[key] = v.clone()
	}
	return &c
}

func (v *ShadowVariant) clone() *ShadowVariant {
	c := *v
	c.Options = slices.Clone(v.Options)
	c.Fields = cloneMap(v.Fields)
	c.Metafields = cloneMap(v.Metafields)
	c.Stock = cloneMap(v.Stock)
	return &c
}

func cloneOptions(in []ShadowOption) []ShadowOption {
	out := slices.Clone(in)
	for i := range out {
		out[i].Values = slices.Clone(out[i].Values)
	}
	return out
}

// cloneMap is maps.Clone that never returns nil, so that its result can be written to.
func cloneMap[V any](m map[string]V) map[string]V {
	if m == nil {
		return map[string]V{}
	}
	return maps.Clone(m)
}

// onSale reports whether buyers can see the product.
func (s *Shadow) onSale() bool { return s.Status == statusActive || s.Status == statusUnlisted }

// variantIDs lists the variants in the order of the document, or of their keys where there is none.
func (s *Shadow) variantIDs(doc *document.Document) []string {
	if s == nil {
		return nil
	}
	var ids []string
	if doc != nil {
		for _, v := range doc.Variants.Value {
			if sv := s.Variants[v.Key]; sv != nil {
				ids = append(ids, sv.ID)
			}
		}
	}
	if ids == nil {
		for _, key := range slices.Sorted(maps.Keys(s.Variants)) {
			ids = append(ids, s.Variants[key].ID)
		}
	}
	return ids
}

// Marks that stand for no value.
const (
	nothing = "~" // it was cleared
	unknown = "?" // it was ours, is not now, and may have any value
)

// release notes that a list is not owned any more.
func (s *Shadow) release(part string, anything bool) {
	if anything {
		s.Released[part] = true
	}
}

// mark stands for a value in a shadow: itself while that is short, else its hash.
func mark(v string) string {
	if len(v) <= 40 {
		return "=" + v
	}
	sum := sha256.Sum256([]byte(v))
	return "#" + hex.EncodeToString(sum[:12])
}

// markDecimal is the mark of a decimal, equal for "12.5" and "12.50": shops write prices with two digits.
func markDecimal(v string) string {
	whole, fraction, _ := strings.Cut(v, ".")
	fraction = strings.TrimRight(fraction, "0")
	whole = strings.TrimLeft(whole, "0")
	if whole == "" {
		whole = "0"
	}
	if fraction == "" {
		return "=" + whole
	}
	return "=" + whole + "." + fraction
}

// Product statuses of the Admin API.
const (
	statusActive   = "ACTIVE"
	statusDraft    = "DRAFT"
	statusArchived = "ARCHIVED"
	statusUnlisted = "UNLISTED"
)
