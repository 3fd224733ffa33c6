package main

import (
	"context"

	"github.com/shelfwire/shelfwire/deploy/embedded/apachekafka"
	"github.com/shelfwire/shelfwire/deploy/embedded/kafka"
)

// captureBroker is the broker that capture is measured into, in a process of its own.
type captureBroker struct {
	brokerProcess
	// kind is what it is, label what the names of its figures end with.
	kind, label string
	// warm is how many readings of a load come before those that count.
	warm int
}

// brokerProcess is implemented by the brokers of deploy/embedded.
type brokerProcess interface {
	Addr() string
	PID() int
	Stop() error
}

// startBroker starts one on a directory.
type startBroker func(ctx context.Context, dir string) (captureBroker, error)

func kfakeBroker(ctx context.Context, dir string) (captureBroker, error) {
	p, err := kafka.StartProcess(ctx, kafka.Config{Dir: dir})
	return captureBroker{brokerProcess: p, kind: "kfake"}, err
}

// apacheBroker starts Apache Kafka. A Java machine needs ten times the processor time while it compiles itself.
func apacheBroker(ctx context.Context, dir string) (captureBroker, error) {
	p, err := apachekafka.Start(ctx, apachekafka.Config{Dir: dir})
	return captureBroker{brokerProcess: p, kind: "Apache Kafka", label: ", Apache Kafka", warm: 2}, err
}
