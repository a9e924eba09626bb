// SPDX-License-Identifier: Apache-2.0
//! Host listeners of published ports.
