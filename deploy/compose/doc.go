// Package compose holds the test that brings docker-compose.yml up on a Docker
// engine and sees that no job gets lost (build tag compose; run it through
// `make compose-smoke`), and what that test needs instead of images it cannot
// pull. It exists because a compose file that only looks right is found out by
// the first person who deploys it.
package compose
