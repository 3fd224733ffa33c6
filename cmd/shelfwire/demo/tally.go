package demo

import (
	"maps"
	"slices"
	"sync"
)

// Kind is what a transaction was about.
type Kind string

// The kinds of traffic.
const (
	KindPrice         Kind = "price"
	KindPriceList     Kind = "price list"
	KindPriceRule     Kind = "price rule"
	KindContent       Kind = "content"
	KindImage         Kind = "image"
	KindApproval      Kind = "approval"
	KindRevocation    Kind = "approval revoked"
	KindBooking       Kind = "stock booking"
	KindReceipt       Kind = "goods receipt"
	KindCount         Kind = "stock count"
	KindOrder         Kind = "order"
	KindImport        Kind = "import"
	KindRollback      Kind = "rollback"
	KindSavepoint     Kind = "savepoint rolled back"
	KindVariantDelete Kind = "variant deleted"
	KindProductDelete Kind = "product deleted"
	KindMistake       Kind = "title mistyped, mended"
	KindSwitch        Kind = "price sync switched"
)

// Path is the kind of code that wrote a transaction.
type Path string

// The code paths.
const (
	PathUpdate   Path = "update"
	PathCopy     Path = "copy"
	PathMerge    Path = "merge"
	PathFunction Path = "function"
	PathCascade  Path = "cascade"
	PathBulk     Path = "bulk"
	PathScript   Path = "script"
	PathHTTP     Path = "http"
)

// Stats counts what the traffic has done so far.
type Stats struct {
	// Committed and RolledBack count transactions. A savepoint that was rolled back is part of a committed one.
	Committed, RolledBack int64
	// Rows are the rows that committed statements have changed, without those of cascades.
	Rows int64
	// Kinds and Paths count committed transactions that changed a row, and for rollbacks those that would have.
	Kinds map[Kind]int64
	Paths map[Path]int64
}

// Marks is what an audit should look for besides equality.
type Marks struct {
	// RolledBack are titles and SKUs that only transactions and savepoints have held that were rolled back. Each is
	// unique; none may ever be seen in a shop, a topic or ClickHouse.
	RolledBack []string
	// Batches are the names of the named batches that were committed.
	Batches []string
	// DeletedProducts and DeletedVariants are ids that must not be on sale any more.
	DeletedProducts, DeletedVariants []string
}

// Stats returns the counts so far. It may be called at any time.
func (t *Traffic) Stats() Stats {
	t.tally.mu.Lock()
	defer t.tally.mu.Unlock()
	s := t.tally.stats
	s.Kinds, s.Paths = maps.Clone(s.Kinds), maps.Clone(s.Paths)
	return s
}

// Marks returns what there is to look for so far. It may be called at any time.
func (t *Traffic) Marks() Marks {
	t.tally.mu.Lock()
	defer t.tally.mu.Unlock()
	m := t.tally.marks
	return Marks{
		RolledBack:      slices.Clone(m.RolledBack),
		Batches:         slices.Clone(m.Batches),
		DeletedProducts: slices.Clone(m.DeletedProducts),
		DeletedVariants: slices.Clone(m.DeletedVariants),
	}
}

// tally is the account of the traffic, shared by its writers.
type tally struct {
	mu      sync.Mutex
	stats   Stats
	marks   Marks
	used    map[Kind]int64
	newRows int64
}

func newTally() tally {
	return tally{stats: Stats{Kinds: map[Kind]int64{}, Paths: map[Path]int64{}}, used: map[Kind]int64{}}
}

func (y *tally) committed() { y.change(func() { y.stats.Committed++ }) }

func (y *tally) rolledBack() { y.change(func() { y.stats.RolledBack++ }) }

// did counts an action that has ended well; one that found nothing to change does not count.
func (y *tally) did(k Kind, p Path, rows int64) {
	if rows == 0 {
		return
	}
	y.change(func() {
		y.stats.Kinds[k]++
		y.stats.Paths[p]++
		if k != KindRollback {
			y.stats.Rows += rows
		}
	})
}

// allow takes one of the limited number of times that a kind may happen.
func (y *tally) allow(k Kind, limit int64) (ok bool) {
	y.change(func() {
		if ok = y.used[k] < limit; ok {
			y.used[k]++
		}
	})
	return ok
}

// added is how many products the traffic has brought.
func (y *tally) added() (n int64) {
	y.change(func() { n = y.newRows })
	return n
}

func (y *tally) mark(note func(*Marks)) { y.change(func() { note(&y.marks) }) }

func (y *tally) change(f func()) {
	y.mu.Lock()
	defer y.mu.Unlock()
	f()
}
