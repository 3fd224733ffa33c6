// Package torture kills every part of a running Shelfwire and then looks for what was lost, doubled or left over.
//
// It is a test: PostgreSQL, Kafka, ClickHouse, the simulated shops and each role of Shelfwire run in processes of their
// own while a back office writes. A seeded schedule ends one part after the other with SIGKILL and starts it again on
// the same data and port. When the traffic is over and everything has come to rest, the copies of the data are compared
// row by row:
//
//   - the source against the topics, by a replication slot of the test's own that no Shelfwire has touched;
//   - the state against the topics, by a trigger that keeps every row that was ever put into the outbox;
//   - the topics against ClickHouse, by partition and offset;
//   - the source against the shops, by `shelfwire audit` and by SQL that shares nothing with the documents query;
//   - the state against itself: nothing open, nothing waiting.
//
// Capture alone is tortured harder, by schedules of a few seconds each (trial_test.go): captures are killed, frozen and
// cut off, take over from each other, start with other settings; the server is killed, restored from a copy, failed over;
// the slot is dropped, read by others, lost; the broker errs; tables are changed. Then the topics are compared with a
// history that triggers in the source have written, in the order of commits that a slot of the test's own tells. Nothing
// of Shelfwire's decoding is in that.
//
// So is the middle, from Kafka to the shops and ClickHouse (middle_test.go): workers of every stage are killed, frozen and
// ended at any of their steps, lose answers, take over from each other; shops die, answer twice or late; the documents
// query breaks; the state's clock steps; campaigns are paused, cancelled and replayed. Then everything above is compared, and
// that no batch has ended early, that the last outcomes are what the state believes, and that by its shadows nothing is left
// to send. A test of its own doctors each copy and sees that it is found.
//
// An ordinary `go test` kills each part once. `make torture` kills thirty times; the seed is printed and SEED repeats it.
//
//	SEED                            seed of the schedule, the traffic and the shops' faults
//	SCHEDULES                       how many schedules of capture and of the middle, with seeds from SEED on
//	SHELFWIRE_TORTURE=1             the long run
//	SHELFWIRE_TORTURE_RESULTS       file to which the result of each such schedule is appended
//	SHELFWIRE_TORTURE_KEEP          directory to which the logs of all parts are copied, in one of its own for each test
//	SHELFWIRE_TEST_KAFKA=apache     a real broker in the long run, in place of kfake
//	SHELFWIRE_TEST_POSTGRES         major version of PostgreSQL
package torture
