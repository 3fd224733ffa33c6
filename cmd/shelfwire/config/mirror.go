package config

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// Mirror is written "mirror: true", or with keys of its own, which say the same.
type Mirror struct {
	On bool
	// Prefix is the first part of the topics' names and the name of the source in their records: PREFIX.schema.table.
	// Default: kafka.prefix without the dot at its end.
	Prefix string `yaml:"prefix"`
	// Tables, as schema.table, are mirrored beside those of the routes and their parents. Their topics begin with what
	// changes from then on; of routed tables they have snapshots too.
	Tables []string `yaml:"tables"`
}

// mirror reads both ways to write it.
func (d *decoder) mirror(n *yaml.Node, m *Mirror, decode func() error) error {
	if n.Kind == yaml.MappingNode {
		m.On = true
		return decode()
	}
	switch n.Value {
	case "true":
		m.On = true
	case "false":
	default:
		return d.fail(n, fmt.Sprintf("mirror is %q", n.Value), "want true or false, or the keys prefix and tables")
	}
	return nil
}

// MirrorTopics are the full names of the mirror topics, none where nothing is mirrored.
func (c *Config) MirrorTopics() ([]string, error) {
	if !c.Mirror.On {
		return nil, nil
	}
	tables := slices.Concat(c.Tables(), c.Mirror.Tables)
	for _, r := range c.Routes {
		if r.Parent != nil {
			tables = append(tables, r.Parent.Table)
		}
	}
	topics, err := event.MirrorTopics(c.Mirror.Prefix, tables)
	if err != nil {
		return nil, err
	}
	return append(slices.Sorted(maps.Values(topics)), event.MirrorTopic(c.Mirror.Prefix, event.MirrorMessages)), nil
}

var mirrorPrefix = regexp.MustCompile(`^[a-zA-Z0-9._-]+$`)

func (c *Config) checkMirror(d *decoder) error {
	if !c.Mirror.On {
		return nil
	}
	if !mirrorPrefix.MatchString(c.Mirror.Prefix) {
		return d.at("mirror.prefix", fmt.Sprintf("%q cannot begin the name of a topic", c.Mirror.Prefix), "use letters, digits, dots, _ and -")
	}
	for i, t := range c.Mirror.Tables {
		if !tableName.MatchString(t) {
			return d.at(fmt.Sprintf("mirror.tables.%d", i), fmt.Sprintf("%q is no table", t), "write schema.table")
		}
	}
	if _, err := c.MirrorTopics(); err != nil {
		return d.at("mirror", err.Error(), "take one of the tables out, or rename it: a topic name has only letters, digits, dots, _ and -")
	}
	return nil
}
