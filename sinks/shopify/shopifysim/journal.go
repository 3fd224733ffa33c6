package shopifysim

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

const journalSuffix = ".journal.jsonl"

// entry is one line of a journal: the shop's foundation, or a request with mutations that was executed. Replaying
// the lines in order at their instants gives the same state and the same ids.
type entry struct {
	At        time.Time      `json:"at"`
	Shop      *ShopConfig    `json:"shop,omitempty"`
	Query     string         `json:"query,omitempty"`
	Operation string         `json:"operation,omitempty"`
	Variables map[string]any `json:"variables,omitempty"`
}

// journal appends to a file. A write reaches the kernel before the mutation is answered, so that it survives the
// death of the process; it is not synced, so not that of the machine.
type journal struct{ file *os.File }

func (j *journal) append(e entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode journal entry: %w", err)
	}
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("append to %s: %w", j.file.Name(), err)
	}
	return nil
}

func (j *journal) close() error { return j.file.Close() }

// restore founds the shop or replays its journal. A last line without its end was not answered and is cut off.
func (s *Shop) restore() error {
	if err := os.MkdirAll(s.sim.cfg.Dir, 0o755); err != nil {
		return fmt.Errorf("make the journal's directory: %w", err)
	}
	path := filepath.Join(s.sim.cfg.Dir, s.cfg.Domain+journalSuffix)
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return fmt.Errorf("open the journal: %w", err)
	}
	good, entries, err := s.replay(file)
	if err == nil {
		err = file.Truncate(good)
	}
	if err == nil {
		_, err = file.Seek(good, io.SeekStart)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("replay %s: %w", path, err), file.Close())
	}
	s.log = &journal{file: file}
	if entries == 0 {
		now := s.sim.cfg.Now()
		s.found(now)
		return s.log.append(entry{At: now, Shop: &s.cfg})
	}
	s.bucket = newBucket(s.cfg.Plan, s.sim.cfg.Now())
	s.stats = newStats()
	s.sim.log.Info("shop restored from its journal", "shop", s.cfg.Domain, "entries", entries)
	return nil
}

// replay executes the complete lines of a journal and returns where they end.
func (s *Shop) replay(file io.Reader) (good int64, entries int, err error) {
	r := bufio.NewReaderSize(file, 1<<20)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return good, entries, nil
		}
		if err != nil {
			return good, entries, fmt.Errorf("read at byte %d: %w", good, err)
		}
		var e entry
		d := json.NewDecoder(bytes.NewReader(line))
		d.UseNumber()
		if err := d.Decode(&e); err != nil {
			return good, entries, fmt.Errorf("decode at byte %d: %w", good, err)
		}
		if err := s.apply(e); err != nil {
			return good, entries, fmt.Errorf("apply at byte %d: %w", good, err)
		}
		good += int64(len(line))
		entries++
	}
}

// apply replays one entry.
func (s *Shop) apply(e entry) error {
	if e.Shop != nil {
		given := s.cfg
		s.cfg = *e.Shop
		if given.Token != "" {
			s.cfg.Token = given.Token
		}
		if given.Plan != "" {
			s.cfg.Plan = given.Plan
		}
		s.found(e.At)
		return nil
	}
	if s.store == nil {
		return errors.New("the journal does not begin with the shop")
	}
	prepared, refused := s.sim.api.prepare(e.Query, e.Operation, e.Variables)
	if refused != nil {
		return fmt.Errorf("a journaled request is refused: %v", refused)
	}
	s.execute(prepared, e.At)
	return nil
}
