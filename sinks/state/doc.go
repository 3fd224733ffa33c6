// Package state keeps, in a Postgres database of its own, what Shelfwire must know across processes and restarts:
// leases, what each shop has, intents, parked products, batches and their items, budgets, the guard, and the outbox.
//
// Everything that a stage writes is one transaction together with the position that it has reached, valid only under
// the leases of the partitions that it concerns. A write is one round trip, whatever it holds: columns travel as
// arrays, statements in one pipeline.
//
// Files: state.go (Open, BindSource), migrate.go (Create, Migrate; migrations/ is the schema), lease.go and assign.go
// (who works on what), write.go (how a write is applied once), takein.go and settle.go (what stages write), park.go and
// pull.go (Park, Pull), campaigns.go, pause.go (what people stop and exclude), known.go (Load), batch.go and batches.go
// (Announce, Complete; lists), rounds.go (a person's retry and cancel), heal.go and restore.go (what is looked at again after a gap), guard.go, forget.go, shops.go (budget, health), outbox.go
// (the relay's side).
//
// # Non-obvious
//
//   - The state's clock decides when a lease ends, when a product is due and what is in the guard's window. Callers'
//     times are turned into delays where they matter.
//   - A fenced write locks the lease rows before all else. So it is either done before another worker can claim the
//     lease, or fails with work.ErrLeaseLost.
//   - Generations of parked rows are unique for ever, so a row that was deleted and parked anew is never deleted by a
//     settlement that has seen the old one.
//   - A product that several campaigns want has a parked row for each. A push ends all rows that its read covers; what
//     must wait again is parked for each of their campaigns. So pausing or cancelling one never loses what another wants.
//   - What a cancel drops in pieces may be passed by a concurrent transaction: rows of a cancelled campaign are never
//     pulled, and [Store.Complete] sweeps them.
//   - A connection may break between a commit and its answer. Writes carry a token, are tried again until the caller's
//     context ends, and are applied once. A caller whose context ended first must not repeat the write: it continues
//     from what the state says, as a new owner would.
//   - Batches are complete by what their items and the positions say in one snapshot; nothing counts along.
package state
