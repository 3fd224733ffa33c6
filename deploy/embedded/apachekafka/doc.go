// Package apachekafka runs one real Apache Kafka broker (KRaft, no ZooKeeper) on
// loopback as a child of this process.
//
// It is for tests and the bench: they hold what works with kfake, the broker in
// this process, against the real thing. It is no broker for production: one node
// without replicas, and settings that make it start and come back quickly.
// `shelfwire demo` does not use it either, as it needs Java and 45 MB of jars.
//
// # Decisions
//
// The jars come through mvn, which knows the user's mirrors, proxies and
// credentials, and no other way. Each is pinned by its sha256 in jars.sum, and
// only those are put on the class path. For another version change pom.xml, run
// the failing fetch, and write down what it got.
//
// No script of Kafka's distribution is used: they are not in the jars, and they
// would stand between this process and the Java machine, which must end with it.
//
// # Traps
//
//   - Two brokers on one directory destroy it: Kafka locks its log directory only
//     after it has opened the metadata log there. So the lock of this package is
//     inherited by the Java machine and lasts as long as that, also when this
//     process is killed and the kernel is still busy ending its child.
//   - A broker that was killed may register again only when the controller, which
//     died with it, has given up its old session: 9 s by default, 12 s until it is
//     ready. broker.session.timeout.ms is 2 s here.
//   - Internal topics want three replicas and have 50 partitions by default; each
//     partition costs files and start-up time.
//   - A Java machine that ends by SIGTERM, as it should, has exit status 143.
package apachekafka
