// Package pipeline holds the stages between the source and the shops: Capture, Expand, Push, Relay and Load, and the
// small interfaces that they need. It knows no driver: cmd passes connectors and sinks in.
//
// Every stage commits what it writes and how far it has read in one atomic step of the system that it writes to, so
// that no ledger beside the data can disagree with it. The steps:
//
//	Capture  one Kafka transaction: records, and the source position
//	Expand   one state transaction: parked products and items, and the page reached
//	Push     one state transaction: results, items, outbox and position, valid only under its leases
//	Relay    one Kafka transaction: outbox rows, and the number of the last of them
//	Load     one INSERT of rows that carry their own identity, then the position
//
// Non-obvious, and each the cause of a lost or doubled push when it is broken:
//
//   - A product's offsets are done only when every shop of its read has been settled. One settler writes one settlement
//     after the other, so exactly one of them is the last of a product and carries its offsets.
//   - The loop of Push waits for no service, and no line of a shop for another's: a line never holds more places than
//     are still free.
//   - A due product whose shops have no room stays in the window, absorbs, and holds its offsets, but not for long: then
//     it is read and parked, so that positions move and memory is bounded whatever a shop does.
//   - What a poll has to write (items, parked rows) is durable before a product that needs it is read. A live change of
//     no batch needs nothing.
//   - Who loses a lease with requests on their way lets the next owner look at these products again: it may have closed
//     their intents long before they were sent. So they are put on record anew, as intents that it has not seen: a row
//     alone would be ended by any push that comes before its turn.
//   - A partition that is handed over sends nothing more: a request needs an intent under its lease, and the lease is
//     gone. So a hand-over may end at the drain deadline, whatever still flies.
//   - What is parked is deleted only at the generation that stood before the read began: a change that parked the
//     product again meanwhile keeps it parked.
//   - A read counts only when its snapshot sees the transactions that asked for it. WAL is sent before a commit is
//     visible to new snapshots.
//   - What is about to be sent for campaigns is marked as in hand before the state is asked whether they are cancelled:
//     a cancel is seen, or its batch waits for what is in hand. What has changed by itself is sent all the same, and a
//     SUCCESS then corrects its cancelled item, as what a shop really did is the truth.
//   - Fan-outs that ask for the same products share a run: their routes' query is asked the same of their rows. Each
//     transaction's batch has exactly the products of a run that is newer than it, and no position passes a fan-out before
//     its run is over. A run that is gone on with is shared by those alone whom its cursor names: whoever came later has
//     nothing of what lies before it.
//   - A request that may have reached a shop leaves an intent. Whoever finds it reads the shop before writing again,
//     and reads once more when the longest flight time is over.
package pipeline
