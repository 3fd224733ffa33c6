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

func apacheBroker(ctx context.Context, dir string) (captureBroker, error) {
	p, err := apachekafka.Start(ctx, apachekafka.Config{Dir: dir})
	return captureBroker{brokerProcess: p, kind: "Apache Kafka", label: ", Apache Kafka"}, err
}
