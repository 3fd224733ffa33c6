package event

import (
	"fmt"
	"unicode/utf16"
)

// The headers that the records of a changed key carry in a mirror topic, as the Debezium connector has them: the delete
// of the old key and its tombstone name the new one, the create of the new key the old one.
const (
	HeaderNewKey = "__debezium.newkey"
	HeaderOldKey = "__debezium.oldkey"
)

// MirrorMessages is the mirror topic of logical messages, behind the name of the source and a dot.
const MirrorMessages = "message"

// MirrorTopic is the Debezium connector's topic of a table ("schema.table"): the name of the source before it, and each
// character that no topic name may have replaced by _. A character beyond U+FFFF is two there, as it is to Java.
func MirrorTopic(name, table string) string {
	topic := utf16.Encode([]rune(name + "." + table))
	out := make([]byte, len(topic))
	for i, c := range topic {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '.', c == '_', c == '-':
			out[i] = byte(c)
		default:
			out[i] = '_'
		}
	}
	return string(out)
}

// maxTopic is what Kafka takes as the name of a topic.
const maxTopic = 249

// MirrorTopics gives the mirror topic of each table. Two tables that would share one are an error, as their records
// could not be told apart; so is a table that would share the topic of messages, and a name that is too long.
func MirrorTopics(name string, tables []string) (map[string]string, error) {
	topics := make(map[string]string, len(tables))
	taken := map[string]string{MirrorTopic(name, MirrorMessages): "the logical messages"}
	for _, table := range tables {
		if topics[table] != "" {
			continue
		}
		topic := MirrorTopic(name, table)
		if other := taken[topic]; other != "" {
			return nil, fmt.Errorf("the mirror topic %s would be that of %s and of %s", topic, other, table)
		}
		if len(topic) > maxTopic {
			return nil, fmt.Errorf("the mirror topic %s has %d characters, and Kafka takes %d", topic, len(topic), maxTopic)
		}
		topics[table], taken[topic] = topic, table
	}
	return topics, nil
}
