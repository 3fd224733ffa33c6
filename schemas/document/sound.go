package document

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// lenient decodes what encoding/json would, where the schema has found nothing wrong.
var lenient = jsonv2.JoinOptions(jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))

// strict decodes nothing that the schema might read in another way.
var strict = jsonv2.RejectUnknownMembers(true)

// decodeSound decodes an eligible document that keeps the schema, and reports whether it does: 25 times as fast as asking the
// schema. False says neither that something is wrong with the document nor what: the schema decides then.
//
// Invariant: what is sound here is valid for the schema, and decoded to the same (FuzzWhatIsSoundIsValid). A rule that
// is added to the schema is added here.
func decodeSound(raw json.RawMessage) (d Document, sound bool) {
	if err := jsonv2.Unmarshal(raw, &d, strict); err != nil || !d.Eligible {
		return Document{}, false
	}
	return d, d.sound()
}

// The patterns of the schema.
var (
	decimalPattern   = regexp.MustCompile(`^[0-9]{1,18}(\.[0-9]{1,9})?$`)
	handlePattern    = regexp.MustCompile(`^[^\s/]+$`)
	tagPattern       = regexp.MustCompile(`^[^,]+$`)
	namespacePattern = regexp.MustCompile(`^[A-Za-z0-9_$:-]{3,255}$`)
	keyPattern       = regexp.MustCompile(`^[A-Za-z0-9_-]{2,64}$`)
	typePattern      = regexp.MustCompile(`^[a-z][a-z0-9_.]{0,99}$`)
	urlPattern       = regexp.MustCompile(`^https?://[^\s]+$`)
)

func (d *Document) sound() bool {
	seo, _ := d.SEO.Get()
	publications, _ := d.Publications.Get()
	return d.Options.Owned == d.Variants.Owned &&
		text(d.Title, 1, MaxLine) && !d.Title.Null &&
		text(d.DescriptionHTML, 0, 524_288) && line(d.Vendor) && line(d.ProductType) &&
		text(d.Handle, 1, MaxLine) && !d.Handle.Null && fits(d.Handle, handlePattern) &&
		line(seo.Title) && text(seo.Description, 0, 5000) &&
		each(d.Tags, 0, MaxTags, func(tag *string) bool { return size(*tag, 1, MaxLine) && tagPattern.MatchString(*tag) }) &&
		each(d.Options, 1, MaxOptions, (*Option).sound) && !d.Options.Null &&
		each(d.Variants, 1, MaxVariants, (*Variant).sound) && !d.Variants.Null &&
		each(d.Metafields, 0, 250, (*Metafield).sound) &&
		each(d.Images, 0, 250, (*Image).sound) &&
		each(d.Publications, 0, 250, func(name *string) bool { return size(*name, 1, MaxLine) }) &&
		unique("", "", "", publications, func(name string) string { return name }) == nil
}

func (o *Option) sound() bool {
	return size(o.Name, 1, MaxLine) && len(o.Values) >= 1 && len(o.Values) <= MaxVariants && lines(o.Values)
}

func (v *Variant) sound() bool {
	return size(v.Key, 1, MaxLine) && len(v.Options) >= 1 && len(v.Options) <= MaxOptions && lines(v.Options) &&
		line(v.SKU) && line(v.Barcode) &&
		fits(v.Price, decimalPattern) && !v.Price.Null && fits(v.CompareAtPrice, decimalPattern) && fits(v.Cost, decimalPattern) &&
		(v.FirstPrice == "" || decimalPattern.MatchString(string(v.FirstPrice))) &&
		(!v.Policy.Owned || v.Policy.Value == "DENY" || v.Policy.Value == "CONTINUE") &&
		!v.Taxable.Null && !v.RequiresShipping.Null &&
		// What is rounded to a bound may be beyond it.
		!math.Signbit(v.WeightGrams.Value) && v.WeightGrams.Value < 2e9 &&
		each(v.Metafields, 0, 250, (*Metafield).sound) &&
		each(v.Stock, 0, 250, (*Level).sound) && !v.Stock.Null
}

func (l *Level) sound() bool {
	return size(l.Location, 1, MaxLine) && l.Quantity >= 0 && l.Quantity <= 1e9 &&
		(l.Name == "" || l.Name == "available" || l.Name == "on_hand")
}

func (m *Metafield) sound() bool {
	return m.Value.Owned && namespacePattern.MatchString(m.Namespace) && keyPattern.MatchString(m.Key) &&
		typePattern.MatchString(m.Type) && text(m.Value, 0, 2_000_000)
}

func (i *Image) sound() bool {
	return size(i.URL, 0, 2048) && urlPattern.MatchString(i.URL) && size(i.Alt, 0, 512)
}

// size reports whether a text has between least and most characters.
func size(s string, least, most int) bool {
	return len(s) >= least && (len(s) <= most || utf8.RuneCountInString(s) <= most)
}

// text is size of what a field holds, if it holds something.
func text(f Field[string], least, most int) bool {
	s, there := f.Get()
	return !there || size(s, least, most)
}

func line(f Field[string]) bool { return text(f, 0, MaxLine) }

func lines(list []string) bool {
	return !slices.ContainsFunc(list, func(s string) bool { return !size(s, 1, MaxLine) })
}

func fits(f Field[string], pattern *regexp.Regexp) bool {
	s, there := f.Get()
	return !there || pattern.MatchString(s)
}

// each checks a list's length and its entries.
func each[T any](f Field[[]T], least, most int, sound func(*T) bool) bool {
	list, there := f.Get()
	if !there {
		return true
	}
	if len(list) < least || len(list) > most {
		return false
	}
	for i := range list {
		if !sound(&list[i]) {
			return false
		}
	}
	return true
}

// Decimal is a decimal as text; "" where there is none, and null in JSON.
type Decimal string

// UnmarshalJSONFrom refuses "", which is no decimal.
func (d *Decimal) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	var s *string
	if err := jsonv2.UnmarshalDecode(dec, &s); err != nil {
		return err
	}
	switch {
	case s == nil:
		*d = ""
	case *s == "":
		return errors.New(`"" is no decimal`)
	default:
		*d = Decimal(*s)
	}
	return nil
}

// UnmarshalJSONFrom accepts a whole number in any of JSON's notations: numeric columns come as 5.000.
func (l *Level) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	var wire struct {
		Location string         `json:"location"`
		Quantity jsontext.Value `json:"quantity"`
		Name     string         `json:"name"`
	}
	if err := jsonv2.UnmarshalDecode(dec, &wire); err != nil {
		return err
	}
	quantity, ok := wholeNumber(string(wire.Quantity))
	if !ok {
		return fmt.Errorf("quantity %s of %s is not a whole number", wire.Quantity, wire.Location)
	}
	*l = Level{Location: wire.Location, Quantity: quantity, Name: wire.Name}
	return nil
}

// wholeNumber reads a number of JSON. With an exponent it may have 15 characters, as so many digits a float64 keeps apart, and
// must not be 0, which the smallest numbers look like.
func wholeNumber(text string) (int, bool) {
	if strings.ContainsAny(text, "eE") {
		f, err := strconv.ParseFloat(text, 64)
		return int(f), err == nil && len(text) <= 15 && f != 0 && f == float64(int(f))
	}
	whole, fraction, _ := strings.Cut(text, ".")
	n, err := strconv.Atoi(whole)
	return n, err == nil && strings.Trim(fraction, "0") == ""
}
