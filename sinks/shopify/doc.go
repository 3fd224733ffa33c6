// Package shopify makes a shop have what its documents say, for the least points, and touches nothing else.
//
// # What happens to one push
//
//	Plan (plan.go)             pure: document and shadow in, mutations out; or nothing to do, with the reason
//	Shops.Send (send.go)       rounds of reads and writes until each product is where its document wants it
//	  readRound (read.go)      products in doubt are read and their shadows rebuilt
//	  pack (pack.go)           mutations of many products share requests up to the cost cap
//	  exchange (client.go)     budget, intent, HTTP; the answer is classified where it is read (errors.go)
//	  settle (settle.go)       each mutation's own answer changes its product's shadow, or becomes its failure
//
// # The shadow
//
// The state keeps for each product, opaque to everybody else, what this package pushed last: ids, and a mark (the
// value itself or its hash) of each thing that the document owned. The next plan compares the document with that, not
// with the shop, so an unchanged product costs no call, and what a merchant adds (tags, metafields, images, channels)
// is never in a list that this package writes.
//
// # Non-obvious
//
//   - Invariant: the shadow changes only when the answer to the mutation says so. A lost answer leaves the old shadow
//     and an open intent; the next plan reads the shop first.
//   - An intent names what its request adds to lists (additions.go): of a worker that was killed nothing else is left,
//     and without it a read would take its tags and images for the merchant's.
//   - An answer may hold some aliases and an error for the others. What was executed is settled and never sent again.
//   - A creation that lands late, after its repetition, replaces the lists of a product that the merchant may have
//     touched in between: productSet by custom id is an upsert. The alternative, a creation without identifier, would
//     leave it to the uniqueness of a metafield alone that there is no second product.
//   - A field that leaves the document leaves the shadow: it is not ours any more, and when it comes back its value is
//     written whatever it was.
//   - Planning is repeated after each round with the new shadow until nothing is left. Publishing after a creation,
//     or metafields that did not fit into a request, need no code of their own.
//   - changeFromQuantity must be present, also as null. Inputs are maps, so that absent and null stay apart.
package shopify
