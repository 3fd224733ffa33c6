package shopifysim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/admin"
)

// maxBody bounds a request body. Shopify's own limit is not documented; metafieldsSet alone may carry 10 MB.
const maxBody = 32 << 20

// errCut says that the connection ends without an answer.
var errCut = errors.New("connection cut by an injected fault")

// reply is an HTTP answer before it is written.
type reply struct {
	status int
	header http.Header
	body   []byte
}

// ServeHTTP answers POST {base}/admin/api/{version}/graphql.json. The base is /{shop}, the shop by its domain or the
// first label of it; or nothing, and then the Host header names the shop. /_sim/ is the simulator's own API
// (control.go).
func (sim *Simulator) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, "/_sim/"); ok {
		sim.control(w, r, rest)
		return
	}
	answer, err := sim.exchange(r)
	if err != nil {
		panic(http.ErrAbortHandler) // the documented way to cut a connection
	}
	maps.Copy(w.Header(), answer.header)
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body) // a client that is gone wants no answer
}

// RoundTripper serves the API without a network, for tests in synctest bubbles: a cut connection is an error, a hang
// lasts until the request's context ends.
func (sim *Simulator) RoundTripper() http.RoundTripper { return roundTripper{sim} }

// Client returns an HTTP client on RoundTripper.
func (sim *Simulator) Client() *http.Client { return &http.Client{Transport: sim.RoundTripper()} }

type roundTripper struct{ sim *Simulator }

func (t roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		defer func() { _ = r.Body.Close() }() // RoundTrip must close it, whatever happens
	}
	answer, err := t.sim.exchange(r)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", r.Method, r.URL, err)
	}
	return &http.Response{
		Status: http.StatusText(answer.status), StatusCode: answer.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: answer.header, Body: io.NopCloser(bytes.NewReader(answer.body)),
		ContentLength: int64(len(answer.body)), Request: r,
	}, nil
}

// shopOf finds the shop that a request addresses.
func (sim *Simulator) shopOf(r *http.Request) *Shop {
	base, _, ok := strings.Cut(r.URL.Path, "/admin/api/")
	if !ok || !strings.HasSuffix(r.URL.Path, "/graphql.json") {
		return nil
	}
	if name := strings.Trim(base, "/"); name != "" {
		return sim.Shop(strings.TrimPrefix(name, "shops/"))
	}
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	host, _, _ = strings.Cut(host, ":")
	return sim.Shop(host)
}

// exchange answers one API request; errCut or the context's error where there is no answer.
func (sim *Simulator) exchange(r *http.Request) (*reply, error) {
	shop := sim.shopOf(r)
	if shop == nil {
		return plain(http.StatusNotFound, `{"errors":"Not Found"}`), nil
	}
	if r.Method != http.MethodPost {
		return plain(http.StatusMethodNotAllowed, `{"errors":"Method Not Allowed"}`), nil
	}
	token := r.Header.Get("X-Shopify-Access-Token")
	if token == "" || shop.cfg.Token != "" && token != shop.cfg.Token {
		return plain(http.StatusUnauthorized, unauthorizedBody), nil
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, errCut
	}
	if len(body) > maxBody {
		return plain(http.StatusRequestEntityTooLarge, `{"errors":"Request Entity Too Large"}`), nil
	}
	delay := sim.faults.latency(sim.cfg.Latency)
	if err := wait(r.Context(), delay/2); err != nil {
		return nil, err
	}
	answer, err := shop.answer(r.Context(), body)
	if err != nil {
		return nil, err
	}
	if err := wait(r.Context(), delay-delay/2); err != nil {
		return nil, err
	}
	return answer, nil
}

const unauthorizedBody = `{"errors":"[API] Invalid API key or access token (unrecognized login or wrong password)"}`

// wait lets d pass, or less when ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func plain(status int, body string) *reply {
	return &reply{status: status, header: header("application/json; charset=utf-8"), body: []byte(body)}
}

func header(contentType string) http.Header {
	h := http.Header{}
	h.Set("Content-Type", contentType)
	h.Set("X-Shopify-API-Version", admin.Version)
	return h
}

// answer decodes a body, lets a fault have its way, and serves what is left.
func (s *Shop) answer(ctx context.Context, body []byte) (*reply, error) {
	var in struct {
		Query         string         `json:"query"`
		Variables     map[string]any `json:"variables"`
		OperationName string         `json:"operationName"`
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&in); err != nil || in.Query == "" {
		return plain(http.StatusBadRequest, `{"errors":{"query":"Required parameter missing or invalid"}}`), nil
	}
	p, refused := s.sim.api.prepare(in.Query, in.OperationName, in.Variables)
	var roots []string
	if p != nil {
		roots = p.roots
	}
	s.mu.Lock()
	s.stats.Requests++
	s.mu.Unlock()
	kind := s.fault(roots)
	if kind != Healthy {
		s.sim.log.Debug("fault injected", "shop", s.cfg.Domain, "kind", string(kind), "fields", roots)
	}
	if answer, err, done := s.before(ctx, kind, p); done {
		return answer, err
	}
	if refused != nil {
		s.mu.Lock()
		s.stats.Refused++
		s.mu.Unlock()
		return rendered(map[string]any{"errors": refused.errors})
	}
	out, err := rendered(s.serve(p, kind == Throttle))
	if err != nil {
		return nil, err
	}
	return s.after(ctx, kind, out)
}

func rendered(answer map[string]any) (*reply, error) {
	body, err := json.Marshal(answer)
	if err != nil {
		return nil, fmt.Errorf("render an answer: %w", err)
	}
	return &reply{status: http.StatusOK, header: header("application/json; charset=utf-8"), body: body}, nil
}

// before acts out the faults that replace execution; done says that there is nothing more to do.
func (s *Shop) before(ctx context.Context, kind FaultKind, p *prepared) (answer *reply, err error, done bool) {
	switch kind {
	case ServerError:
		return plain(http.StatusInternalServerError, `{"errors":"Internal Server Error"}`), nil, true
	case BadGateway:
		return plain(http.StatusBadGateway, `<html><body>502 Bad Gateway</body></html>`), nil, true
	case Unavailable:
		return plain(http.StatusServiceUnavailable, `{"errors":"Service Unavailable"}`), nil, true
	case InternalRefused:
		return internalError(), nil, true
	case LostRequest:
		return nil, errCut, true
	case Late:
		s.landLate(p)
		return nil, errCut, true
	case Hang:
		<-ctx.Done()
		return nil, ctx.Err(), true
	case Garbage:
		return &reply{status: http.StatusOK, header: header("text/html"), body: []byte("<!doctype html><title>oops</title>")}, nil, true
	case Unauthorized:
		return plain(http.StatusUnauthorized, unauthorizedBody), nil, true
	case PaymentRequired:
		return plain(http.StatusPaymentRequired, `{"errors":"Unavailable Shop"}`), nil, true
	case Forbidden:
		return plain(http.StatusForbidden, `{"errors":"[API] This action requires merchant approval for write_products scope."}`), nil, true
	case NotFound:
		return plain(http.StatusNotFound, `{"errors":"Not Found"}`), nil, true
	case Locked:
		return plain(http.StatusLocked, `{"errors":"Locked"}`), nil, true
	case TooMany:
		r := plain(http.StatusTooManyRequests, `{"errors":"Exceeded 2 calls per second for api client. Reduce request rates to resume uninterrupted service."}`)
		r.header.Set("Retry-After", "4.0")
		return r, nil, true
	case DailyVariants:
		return plain(http.StatusTooManyRequests, `{"errors":"Product: Daily variant creation limit reached. Please try again later."}`), nil, true
	case Redirect:
		r := plain(http.StatusFound, "")
		r.header.Set("Location", "https://elsewhere.invalid/admin/api/graphql.json")
		return r, nil, true
	default:
		return nil, nil, false
	}
}

// after acts out the faults that follow execution.
func (s *Shop) after(ctx context.Context, kind FaultKind, out *reply) (*reply, error) {
	switch kind {
	case LostResponse:
		return nil, errCut
	case HangExecuted:
		<-ctx.Done()
		return nil, ctx.Err()
	case InternalError:
		return internalError(), nil
	case GatewayTimeout:
		return plain(http.StatusGatewayTimeout, `<html><body>504 Gateway Timeout</body></html>`), nil
	case Truncated:
		out.body = out.body[:len(out.body)/2]
	default:
	}
	return out, nil
}

// landLate executes a request after its connection was cut, as a delayed packet does.
func (s *Shop) landLate(p *prepared) {
	if p == nil {
		return
	}
	s.sim.late.Add(1)
	time.AfterFunc(s.sim.faults.lateBy(), func() {
		defer s.sim.late.Done()
		s.serve(p, false)
	})
}

func internalError() *reply {
	const id = "00000000-0000-4000-8000-000000000000-1"
	return plain(http.StatusOK, `{"errors":[{"message":"Internal error. Looks like something went wrong on our end.\nRequest ID: `+id+
		` (include this in support requests).","extensions":{"code":"INTERNAL_SERVER_ERROR","requestId":"`+id+`"}}]}`)
}
