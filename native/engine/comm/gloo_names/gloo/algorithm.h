// ProcessGroupGloo.hpp uses no name of this header.
#pragma once
