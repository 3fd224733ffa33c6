package document

import (
	"bytes"
	_ "embed" // the schema
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Limits of Shopify's Admin API 2026-10 that callers size their work by; the schema holds all of them.
const (
	MaxVariants = 2048 // of a product, for all merchants since 2025-10-15
	MaxOptions  = 3
	MaxTags     = 250
	MaxLine     = 255 // characters of a title, handle, vendor, product type, tag, SKU, barcode, option name or value
)

//go:embed document.schema.json
var schemaJSON []byte

// Schema returns the published JSON Schema (draft 2020-12) of a document.
func Schema() []byte { return bytes.Clone(schemaJSON) }

// Parse checks a document against the schema and decodes it. Every error is an *[Error]. It is safe for concurrent
// use.
//
// Of a document that is not eligible only the reason is read: a product that must leave the shop leaves it, whatever
// else is wrong with its document.
func Parse(raw json.RawMessage) (Document, error) {
	d, sound := decodeSound(raw)
	if !sound {
		var err error
		if d, err = decodeBySchema(raw); err != nil || !d.Eligible {
			return d, err
		}
	}
	d.Reason = "" // a query that always names the column gives null or a leftover here
	d.trim()
	if err := d.check(); err != nil {
		return Document{}, err
	}
	return d, nil
}

// decodeBySchema asks the schema, which finds the words for what is wrong.
func decodeBySchema(raw json.RawMessage) (Document, error) {
	value, err := decodeAny(raw)
	if err != nil {
		return Document{}, err
	}
	if value, err = finite(value, nil); err != nil {
		return Document{}, err
	}
	c, err := compiled()
	if err != nil {
		return Document{}, err
	}
	if err := c.schema.Validate(value); err != nil {
		return Document{}, c.explain(err)
	}
	if eligible, reason := verdict(value); !eligible {
		return Document{Reason: reason}, nil
	}
	var d Document
	if err := jsonv2.Unmarshal(raw, &d, lenient); err != nil {
		return Document{}, &Error{Message: fmt.Sprintf("does not fit the document (%v)", err)}
	}
	return d, nil
}

// trim takes the spaces around names that a shop compares. It would store them without, and a value that is never
// found again under the name that it was sent by would be renamed for ever. What others look things up by (keys, SKUs)
// stays as it is.
func (d *Document) trim() {
	d.Title.Value = strings.TrimSpace(d.Title.Value)
	for i := range d.Options.Value {
		o := &d.Options.Value[i]
		o.Name = strings.TrimSpace(o.Name)
		for j := range o.Values {
			o.Values[j] = strings.TrimSpace(o.Values[j])
		}
	}
	for i := range d.Variants.Value {
		for j, value := range d.Variants.Value[i].Options {
			d.Variants.Value[i].Options[j] = strings.TrimSpace(value)
		}
	}
}

// decodeAny decodes with the numbers as they stand, so that a limit is checked on what was written.
func decodeAny(raw []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	err := dec.Decode(&v)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the object")
		}
	}
	if err != nil {
		return nil, &Error{Message: fmt.Sprintf("is not JSON (%v); the documents query must return jsonb", err)}
	}
	return v, nil
}

// finite returns the value with numbers that can be compared: the schema's library ends the process over 1e999999999, and
// thinks long about 1e-9999999.
func finite(value any, at []string) (_ any, err error) {
	switch v := value.(type) {
	case json.Number:
		i := strings.IndexAny(string(v), "eE")
		if i < 0 || len(strings.TrimLeft(string(v[i+1:]), "+-0")) <= 3 {
			return v, nil
		}
		f, err := strconv.ParseFloat(string(v), 64)
		if err != nil {
			return nil, &Error{Path: joinPath(at), Message: fmt.Sprintf("is %s: no shop takes so large a number", quote(string(v)))}
		}
		return json.Number(strconv.FormatFloat(f, 'g', -1, 64)), nil
	case []any:
		for i := range v {
			if v[i], err = finite(v[i], append(at, strconv.Itoa(i))); err != nil {
				return nil, err
			}
		}
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			if v[key], err = finite(v[key], append(at, key)); err != nil {
				return nil, err
			}
		}
	}
	return value, nil
}

// verdict reads eligibility from a value that has passed the schema.
func verdict(value any) (eligible bool, reason string) {
	fields, _ := value.(map[string]any)
	eligible, _ = fields["eligible"].(bool)
	reason, _ = fields["reason"].(string)
	return eligible, reason
}

// contract is the compiled schema, and the names of the fields of each object for messages.
type contract struct {
	schema *jsonschema.Schema
	fields map[string][]string
}

// compiled compiles the schema once: 2 ms, against 0.1 ms for a validation.
var compiled = sync.OnceValues(func() (*contract, error) {
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(schemaJSON))
	if err != nil {
		return nil, fmt.Errorf("read document.schema.json: %w", err)
	}
	const url = "document.schema.json"
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource(url, doc); err != nil {
		return nil, fmt.Errorf("add document.schema.json: %w", err)
	}
	schema, err := compiler.Compile(url)
	if err != nil {
		return nil, fmt.Errorf("compile document.schema.json: %w", err)
	}
	return &contract{schema: schema, fields: fieldNames(doc)}, nil
})
