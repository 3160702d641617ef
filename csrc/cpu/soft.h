// The soft tokens of the CPU engine, as engine.cpp sees them.
#pragma once

#include "../args.h"
#include "target.h"

namespace fastdecode {

void embed_by(const Target& target, const EmbedArgs& args, int threads);  // std::out_of_range: see engine.h

}  // namespace fastdecode
