package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"go.yaml.in/yaml/v3"
)

// Secret is a value that is never printed: a string, usually ${NAME}, or {file: PATH}.
type Secret string

// String hides the value.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "***"
}

// GoString hides the value from %#v.
func (s Secret) GoString() string { return s.String() }

// MarshalText hides the value from JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Reveal returns the value, for the driver that needs it.
func (s Secret) Reveal() string { return string(s) }

// decoder fills a struct from YAML and knows the place of every key.
type decoder struct {
	file, dir string
	getenv    func(string) (string, bool)
	places    map[string]*yaml.Node
	lines     []string // of the file
}

func (d *decoder) path(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(d.dir, p)
}

func (d *decoder) decode(raw []byte, into any) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(raw, &doc); err != nil {
		return d.syntax(err)
	}
	d.places, d.lines = map[string]*yaml.Node{}, strings.Split(string(raw), "\n")
	if len(doc.Content) == 0 {
		return &Error{File: d.file, Problem: "the file is empty", Mend: "shelfwire init writes one to start from"}
	}
	return d.value(doc.Content[0], reflect.ValueOf(into).Elem(), "")
}

var yamlLine = regexp.MustCompile(`line (\d+): (.*)`)

func (d *decoder) syntax(err error) error {
	e := &Error{File: d.file, Problem: err.Error(), Mend: "mend the YAML"}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		e.Line, _ = strconv.Atoi(m[1])
		e.Column, e.Problem = 1, m[2]
	}
	return e
}

// at is an error at the place of a path such as push.max_wait, or of its nearest parent that the file has.
func (d *decoder) at(path, problem, mend string) *Error {
	e := &Error{File: d.file, Problem: problem, Mend: mend}
	for {
		if n := d.places[path]; n != nil {
			e.Line, e.Column = n.Line, n.Column
			return e
		}
		i := strings.LastIndexByte(path, '.')
		if i < 0 {
			return e
		}
		path = path[:i]
	}
}

func (d *decoder) fail(n *yaml.Node, problem, mend string) error {
	return &Error{File: d.file, Line: n.Line, Column: n.Column, Problem: problem, Mend: mend}
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) error {
	d.places[path] = n
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if v.Type() == reflect.TypeFor[Secret]() && n.Kind == yaml.MappingNode {
		return d.secretFile(n, v, path)
	}
	if m, ok := reflect.TypeAssert[*Mirror](v.Addr()); ok {
		return d.mirror(n, m, func() error { return d.mapping(n, v, path) })
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return d.value(n, v.Elem(), path)
	case reflect.Struct:
		return d.mapping(n, v, path)
	case reflect.Map:
		return d.dictionary(n, v, path)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			return d.fail(n, path+" must be a list", "write its entries with a leading dash")
		}
		v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
		for i, c := range n.Content {
			if err := d.value(c, v.Index(i), fmt.Sprintf("%s.%d", path, i)); err != nil {
				return err
			}
		}
		return nil
	default:
		return d.scalar(n, v, path)
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.MappingNode {
		return d.fail(n, nameOf(path)+" must hold keys", "indent its keys below it")
	}
	fields := map[string]int{}
	var known []string
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		if name == "" {
			continue // no key of the file
		}
		fields[name] = i
		known = append(known, name)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		f, ok := fields[key.Value]
		switch {
		case !ok:
			return d.fail(key, fmt.Sprintf("unknown key %q in %s", key.Value, nameOf(path)), suggest(key.Value, known))
		case seen[key.Value]:
			return d.fail(key, fmt.Sprintf("the key %q stands twice", key.Value), "keep one")
		}
		seen[key.Value] = true
		if err := d.value(n.Content[i+1], v.Field(f), join(path, key.Value)); err != nil {
			return err
		}
	}
	return nil
}

func (d *decoder) dictionary(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.MappingNode {
		return d.fail(n, nameOf(path)+" must hold names", "indent one name for each entry below it")
	}
	v.Set(reflect.MakeMap(v.Type()))
	for i := 0; i+1 < len(n.Content); i += 2 {
		e := reflect.New(v.Type().Elem()).Elem()
		if err := d.value(n.Content[i+1], e, join(path, n.Content[i].Value)); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(n.Content[i].Value), e)
	}
	return nil
}

var variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) error {
	if n.Kind != yaml.ScalarNode {
		return d.fail(n, path+" must be one value", "write it behind the colon")
	}
	var missing string
	text := variable.ReplaceAllStringFunc(n.Value, func(m string) string {
		val, ok := d.getenv(m[2 : len(m)-1])
		if !ok && missing == "" {
			missing = m[2 : len(m)-1]
		}
		return val
	})
	if missing != "" {
		return d.fail(n, fmt.Sprintf("%s needs the environment variable %s, which is not set", path, missing), "set it, or write the value here")
	}
	wrong := func(want string) error {
		return d.fail(n, fmt.Sprintf("%s is %q", path, n.Value), "want "+want)
	}
	switch {
	case v.Type() == reflect.TypeFor[time.Duration]():
		x, err := time.ParseDuration(text)
		if err != nil || x < 0 {
			return wrong("a duration such as 500ms, 5s or 10m")
		}
		v.SetInt(int64(x))
	case v.Kind() == reflect.String:
		v.SetString(text)
	case v.Kind() == reflect.Bool:
		x, err := strconv.ParseBool(text)
		if err != nil {
			return wrong("true or false")
		}
		v.SetBool(x)
	case v.CanInt():
		x, err := strconv.Atoi(text)
		if err != nil || x < 0 {
			return wrong("a whole number")
		}
		v.SetInt(int64(x))
	case v.CanFloat():
		x, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return wrong("a number")
		}
		v.SetFloat(x)
	default:
		return errors.New("config: no rule for the type of " + path)
	}
	return nil
}

// secretFile reads {file: PATH}; a final line end is not part of the secret.
func (d *decoder) secretFile(n *yaml.Node, v reflect.Value, path string) error {
	var f struct {
		File string `yaml:"file"`
	}
	if err := d.mapping(n, reflect.ValueOf(&f).Elem(), path); err != nil {
		return err
	}
	b, err := os.ReadFile(d.path(f.File))
	if err != nil {
		return d.fail(n, fmt.Sprintf("%s: %v", path, err), "name a file that holds nothing but the secret")
	}
	v.SetString(strings.TrimRight(string(b), "\r\n"))
	return nil
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func nameOf(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

// suggest names the key that was probably meant, and else all of them.
func suggest(key string, known []string) string {
	best, least := "", 4
	for _, k := range known {
		if d := levenshtein.ComputeDistance(key, k); d < least {
			best, least = k, d
		}
	}
	if best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	slices.Sort(known)
	return "known keys are " + strings.Join(known, ", ")
}
