package embeddedtest

import (
	"fmt"
	"os"
	"strconv"
)

// The variables that choose what tests run on.
const (
	postgresVariable = "SHELFWIRE_TEST_POSTGRES"
	kafkaVariable    = "SHELFWIRE_TEST_KAFKA"
)

// postgresMajor is the version asked for; 0: any.
func postgresMajor() (int, error) {
	text := os.Getenv(postgresVariable) //nolint:forbidigo // only tests come here, and nobody else could tell them
	if text == "" {
		return 0, nil
	}
	major, err := strconv.Atoi(text)
	if err != nil || major < 1 {
		return 0, fmt.Errorf("%s=%s: want a major version such as 18", postgresVariable, text)
	}
	return major, nil
}

// realKafka says whether tests are to run on Apache Kafka.
func realKafka() (bool, error) {
	switch text := os.Getenv(kafkaVariable); text { //nolint:forbidigo // as above
	case "", "kfake":
		return false, nil
	case "apache":
		return true, nil
	default:
		return false, fmt.Errorf("%s=%s: want kfake or apache", kafkaVariable, text)
	}
}
