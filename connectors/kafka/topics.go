package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/shelfwire/shelfwire/schemas/event"
)

// The partitions of catalog.positions: one for each kind of writer, so that reading a position never waits behind
// another writer's open transaction. The rest of the eight is room for stages to come.
const (
	CapturePartition int32 = 0
	RelayPartition   int32 = 1

	positionPartitions = 8
)

// topicSpec is how a topic must look.
type topicSpec struct {
	name       string
	partitions int32
	config     map[string]string
}

func (c *Cluster) specs() []topicSpec {
	n := c.cfg.Partitions
	size := strconv.Itoa(int(c.cfg.MaxRecordBytes) + 4096) // a batch around one record has a header of its own
	// The policy is said for each: a broker may have another default.
	rows := map[string]string{"cleanup.policy": "delete", "max.message.bytes": size}
	compacted := map[string]string{"cleanup.policy": "compact", "max.message.bytes": size}
	specs := []topicSpec{
		{c.Topic(event.Changes), n, rows},
		{c.Topic(event.Fanouts), n, rows},
		// One partition: announcements of one batch and what became of it stay in order, and one worker reads them.
		{c.Topic(event.Batches), 1, map[string]string{"cleanup.policy": "delete"}},
		{c.Topic(event.Outcomes), n, rows},
		{c.Topic(event.Documents), n, compacted},
		{c.Topic(event.DeadLetters), n, rows},
		// 50 positions a second are a gigabyte a day before compaction, which never touches the active segment.
		{c.Topic(event.Positions), positionPartitions, map[string]string{"cleanup.policy": "compact", "segment.bytes": "16777216"}},
	}
	for _, name := range c.cfg.Mirrors {
		specs = append(specs, topicSpec{name, n, map[string]string{"max.message.bytes": size}})
	}
	return specs
}

// TopicError says that a topic exists with another shape than the one that is needed.
type TopicError struct {
	Topic      string
	Have, Want int32
}

func (e *TopicError) Error() string {
	return fmt.Sprintf("topic %s has %d partitions and %d are configured: a topic is never widened, as the order per "+
		"product rests on its partition count; set kafka.partitions to %d, or use another kafka.prefix and take a new "+
		"snapshot", e.Topic, e.Have, e.Want, e.Have)
}

// Permanent says that trying again does not help.
func (*TopicError) Permanent() bool { return true }

// TopicTwiceError says that a mirror topic would be one of ours.
type TopicTwiceError struct{ Topic string }

func (e *TopicTwiceError) Error() string {
	return fmt.Sprintf("the mirror topic %s is already that of something else: use another mirror.prefix", e.Topic)
}

// Permanent says that trying again does not help.
func (*TopicTwiceError) Permanent() bool { return true }

// TopicConfigError says that a topic exists with a setting that would lose or refuse records.
type TopicConfigError struct {
	Topic, Key, Have, Want, Why string
}

func (e *TopicConfigError) Error() string {
	return fmt.Sprintf("topic %s has %s=%s, which %s: run kafka-configs.sh --alter --entity-type topics --entity-name %s "+
		"--add-config %s=%s", e.Topic, e.Key, e.Have, e.Why, e.Topic, e.Key, e.Want)
}

// Permanent says that trying again does not help.
func (*TopicConfigError) Permanent() bool { return true }

// checkConfig holds the settings of topics that somebody else may have made against what is needed. Where the broker
// does not tell them to us, it is silent.
func (c *Cluster) checkConfig(ctx context.Context, specs []topicSpec, names []string) error {
	found, err := c.adm.DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return fmt.Errorf("describe the settings of topics: %w", err)
	}
	for _, s := range specs {
		name := s.name
		rc, err := found.On(name, nil)
		if err != nil || rc.Err != nil {
			continue // reading settings is a right of its own
		}
		have := map[string]string{}
		for _, e := range rc.Configs {
			have[e.Key] = e.MaybeValue()
		}
		const size, policy = "max.message.bytes", "cleanup.policy"
		want := s.config[policy]
		if got := have[policy]; got != "" && want != "" && got != want {
			why := "loses what a position or a document says once it is old"
			if want == "delete" {
				why = "loses all but the last record of a key"
			}
			return &TopicConfigError{Topic: name, Key: policy, Have: got, Want: want, Why: why}
		}
		need, _ := strconv.Atoi(s.config[size])
		if got, err := strconv.Atoi(have[size]); err == nil && got < need {
			return &TopicConfigError{Topic: name, Key: size, Have: have[size], Want: s.config[size], Why: "refuses large rows, and nothing would pass them"}
		}
	}
	return nil
}

// admission is how long a broker that has just started may take until the controller counts it among those that can
// have a replica. It answers clients before that.
const admission = 20 * time.Second

func (c *Cluster) createTopic(ctx context.Context, partitions int32, config map[string]*string, name string) error {
	for end := time.Now().Add(admission); ; {
		resp, err := c.adm.CreateTopic(ctx, partitions, c.cfg.Replication, config, name)
		if err == nil {
			err = resp.Err
		}
		if !errors.Is(err, kerr.InvalidReplicationFactor) || time.Now().After(end) {
			return err
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// EnsureTopics creates the topics that are missing and checks partition counts and settings of those that stand. It
// changes nothing about an existing topic.
func (c *Cluster) EnsureTopics(ctx context.Context) error {
	specs := c.specs()
	names := make([]string, 0, len(specs))
	for _, s := range specs {
		if slices.Contains(names, s.name) {
			return &TopicTwiceError{Topic: s.name}
		}
		names = append(names, s.name)
	}
	for _, s := range specs {
		config := make(map[string]*string, len(s.config))
		for k, v := range s.config {
			config[k] = new(v)
		}
		if err := c.createTopic(ctx, s.partitions, config, s.name); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("create topic %s: %w", s.name, err)
		}
	}
	found, err := c.describe(ctx, names)
	if err != nil {
		return err
	}
	for _, s := range specs {
		d := found[s.name]
		if have := int32(len(d.Partitions)); have != s.partitions {
			return &TopicError{Topic: s.name, Have: have, Want: s.partitions}
		}
	}
	return c.checkConfig(ctx, specs, names)
}

// describe waits as well until a broker knows of topics that have just been made, and of who leads their partitions.
// Offsets could not be asked for before.
func (c *Cluster) describe(ctx context.Context, names []string) (kadm.TopicDetails, error) {
	for end := time.Now().Add(admission); ; {
		found, err := c.adm.ListTopics(ctx, names...)
		if err != nil {
			return nil, fmt.Errorf("describe topics: %w", err)
		}
		for _, name := range names {
			d := found[name]
			errs := []error{d.Err}
			for _, p := range d.Partitions {
				errs = append(errs, p.Err)
			}
			if joined := errors.Join(errs...); joined != nil {
				err = fmt.Errorf("describe topic %s: %w", name, joined)
				break
			}
		}
		if err == nil {
			return found, nil
		}
		if !errors.Is(err, kerr.UnknownTopicOrPartition) && !errors.Is(err, kerr.LeaderNotAvailable) || time.Now().After(end) {
			return nil, err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// CopyOffsets commits next offsets of a topic to a consumer group that has no members. Nothing of ours reads them:
// they are there for lag tools.
func (c *Cluster) CopyOffsets(ctx context.Context, group, topic string, next map[int32]int64) error {
	var os kadm.Offsets
	for p, at := range next {
		os.AddOffset(topic, p, at, -1)
	}
	if err := c.adm.CommitAllOffsets(ctx, group, os); err != nil {
		return fmt.Errorf("copy offsets of %s to group %s: %w", topic, group, err)
	}
	return nil
}

// StartOffsets are, for each partition of a topic, the offset of the first record that retention has left.
func (c *Cluster) StartOffsets(ctx context.Context, topic string) (map[int32]int64, error) {
	return offsetsOf(c.adm.ListStartOffsets(ctx, topic))
}

// EndOffsets are, for each partition of a topic, the offset after the last committed record (the last stable offset).
func (c *Cluster) EndOffsets(ctx context.Context, topic string) (map[int32]int64, error) {
	return offsetsOf(c.adm.ListCommittedOffsets(ctx, topic))
}

func offsetsOf(list kadm.ListedOffsets, err error) (map[int32]int64, error) {
	if err == nil {
		err = list.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("list offsets: %w", err)
	}
	m := make(map[int32]int64)
	list.Each(func(o kadm.ListedOffset) { m[o.Partition] = o.Offset })
	return m, nil
}

// TopicID is the id that the broker gave the topic when it was created; a topic that was made anew has another one.
func (c *Cluster) TopicID(ctx context.Context, topic string) ([16]byte, error) {
	found, err := c.adm.ListTopics(ctx, topic)
	if err == nil {
		err = found[topic].Err
	}
	if err != nil {
		return [16]byte{}, fmt.Errorf("describe topic %s: %w", topic, err)
	}
	return found[topic].ID, nil
}
