//go:build !failpoints

package llm

import "net/http"

func send(client *http.Client, req *http.Request) (*http.Response, error) {
	return client.Do(req) //nolint:gosec // the endpoint is configuration, checked in New and when dialling
}
