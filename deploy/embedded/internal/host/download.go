package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// progressEvery is the time between two reports on a download.
const progressEvery = 2 * time.Second

// Download writes what address answers to file. The proxy settings of the
// environment are honoured. progress is told the bytes so far every 2 s.
func Download(ctx context.Context, address, file string, progress func(done int64)) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", address, resp.Status)
	}
	w, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, &reporter{r: resp.Body, progress: progress, last: time.Now()})
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("GET %s: %w", address, err)
	}
	return nil
}

// reporter tells how much has been read through it.
type reporter struct {
	r        io.Reader
	progress func(done int64)
	done     int64
	last     time.Time
}

func (r *reporter) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.done += int64(n)
	if now := time.Now(); now.Sub(r.last) >= progressEvery {
		r.last = now
		r.progress(r.done)
	}
	return n, err
}
