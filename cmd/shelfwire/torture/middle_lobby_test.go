package torture

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// lobby is a process's way to the shops, as a proxy of HTTP.
type lobby struct {
	url  string
	mood atomic.Int32
	n    atomic.Uint64
}

// What a lobby does to requests.
const (
	lobbyOpen  int32 = iota
	lobbyTwice       // delivers every other one twice before it answers with what came of the first
	lobbySlow        // takes its time
	lobbyLost        // loses every other answer
	lobbyShut        // lets nothing through, and cuts
)

func newLobby(t *testing.T, to string, seed uint64) *lobby {
	t.Helper()
	l := &lobby{}
	l.n.Store(seed)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { l.pass(w, r, to) }))
	t.Cleanup(server.Close)
	l.url = server.URL + "/"
	return l
}

func (l *lobby) set(mood int32) { l.mood.Store(mood) }

func (l *lobby) pass(w http.ResponseWriter, r *http.Request, to string) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler) // cuts the connection
	}
	mood, other := l.mood.Load(), l.n.Add(1)%2 == 0
	switch mood {
	case lobbyShut:
		panic(http.ErrAbortHandler)
	case lobbySlow:
		rest(r.Context(), time.Duration(l.n.Load()%8)*100*time.Millisecond)
	default:
	}
	resp, err := send(r, to, body)
	if mood == lobbyTwice && other {
		if echo, err := send(r, to, body); err == nil {
			_ = echo.Body.Close()
		}
	}
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer resp.Body.Close()
	if mood == lobbyLost && other {
		panic(http.ErrAbortHandler)
	}
	maps.Copy(w.Header(), resp.Header)
	w.WriteHeader(resp.StatusCode)
	_, _ = io.Copy(w, resp.Body)
}

// lobbies follows no redirects, as whoever asks must not.
var lobbies = http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}

func send(r *http.Request, to string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, to+strings.TrimPrefix(r.URL.RequestURI(), "/"), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header = r.Header.Clone()
	return lobbies.Do(req)
}
