package main

import "fmt"

// debeziumRun is what the Debezium connector needs for a load.
//
// It is not run here, for it takes a Java machine, Kafka Connect and minutes to warm up. The figures were recorded on
// 2026-11-21 on two cores of an AMD EPYC with everything on them: Debezium 3.7.0.Final, Kafka Connect standalone and
// Apache Kafka 4.3.1, Java 17 with -Xms256M -Xmx2G and G1, PostgreSQL 15.18; larger queues and batches than by default
// ("tuned"), rows of about 208 bytes, the same WAL read through copies of one slot, its rate between 20 and 90 % of the
// records, when it is warm. Rows a second, and those of pg_recvlogical on the same WAL in the same rounds: 53.3k of
// 121.7k for transactions of 100 rows, 47.5k of 48.3k for 1M transactions of one, 53.9k of 121.9k (protocol 2, streamed)
// for one of 1M.
//
// Two machines, or two days on one, are compared through pg_recvlogical, which both were held against.
type debeziumRun struct {
	// ratio is its rate ÷ that of pg_recvlogical.
	ratio float64
	// cpu is that of the connector's process, µs for each row, the lowest that was seen.
	cpu float64
	// goal is our ratio ÷ its ratio.
	goal float64
}

// debeziumMB is the least that its process had resident with that heap; the most was 2.3 GB.
const debeziumMB = 1200

func (d debeziumRun) rate(name string, ratio float64) figure {
	return atLeast("capture ÷ Debezium 3.7 tuned, through pg_recvlogical, "+name, ratio/d.ratio, "ratio", d.goal,
		fmt.Sprintf("the ratio above ÷ %g, which is what Debezium reached on such a machine (recorded, not run here)", d.ratio))
}

func (d debeziumRun) cost(name string, cpu float64) figure {
	return atMost("CPU of capture ÷ Debezium's, "+name, cpu/d.cpu, "ratio", 0.1,
		fmt.Sprintf("the same runs; ÷ %g µs/row, the lowest of Debezium's process on such a machine (recorded, not run here)", d.cpu))
}

func debeziumMemory(name string, peak float64) figure {
	return atMost("peak memory of capture ÷ Debezium's, "+name, peak/debeziumMB, "ratio", 0.1,
		fmt.Sprintf("the same runs; ÷ %d MB, the least of Debezium's process with the default heap of Kafka Connect (recorded, not run here)", debeziumMB))
}
